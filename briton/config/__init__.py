"""config.yaml and the environment -> frozen, typed values. Nothing outside this package reads either."""
