"""The measures of bench_traffic.py, by what they run: the step loop alone, an executor, a served model."""
