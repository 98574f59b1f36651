"""A campaign of damaged and hostile files: `python -m tests.fuzz_files --minutes M --seed S`.

`kinds` has every kind of file that is read: valid ones, and what reads them. `mutations` is what befalls them: bytes, words of
text, and parts of formats (headers with the right lengths, entries of archives, chunks with the right sums). `work` runs
a case, which must end within `SECONDS` and `MEMORY`, well or with a ValueError that names the file. `tests.fuzz.campaign` runs
cases in a process of their own and reports.

Case i of seed s follows from these two numbers alone, and is of kind i modulo the number of kinds.
"""
