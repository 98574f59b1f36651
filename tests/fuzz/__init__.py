"""A campaign of random networks against the oracles: `python -m tests.fuzz --minutes M --seed S`.

`cloud` draws voxels, `steps` has a class for every op, which draws its options and says what the oracle expects, `network` puts
steps together and runs them, `operations` is what happens to a program meanwhile (threads, a fork, copies, other weights, wrong
input), `campaign` runs cases in a process of their own and reports.

Case i of seed s follows from these two numbers alone. Cases come in pages of `network.PAGE`, which share a palette: channels,
a dtype and a dozen steps with their options, of which networks are put together: most functions are compiled once a page.
"""
