"""
Bytes of strangers, by the million: what reads them must neither fail nor believe them.

A target is a function of bytes; it raises if a promise is broken.  C{python -m tests.faults.fuzz
TARGET --seconds N} looks for such bytes, guided by which code they reach, and C{tests/test_fuzz.py}
tries some, and those that are kept in C{tests/faults/corpus}, with every run of the tests.
"""
