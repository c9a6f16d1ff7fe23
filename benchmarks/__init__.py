"""
How fast msglog is, beside what else there is, and that it stays so: C{python -m benchmarks --help}.

For a clone of the project, not for an installed one: nothing here is in the wheel.
"""
