"""The real model, end to end: `briton serve` as a process, official clients in front of it."""
