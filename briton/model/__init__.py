"""What a model is, on disk and in numbers: engine directory, shapes, generation config, sharding, mapped weights."""
