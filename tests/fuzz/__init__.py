"""Files that are changed at random, and the command line that reads them.

Every kind of file that the program reads is in the table of kinds.py; a case is one kind and one
seed. `python -m tests.fuzz` runs cases in processes of its own and says how to repeat one that
fails; test_fuzz.py runs some of them with the tests, `make fuzz` new ones for twenty minutes.
"""
