"""The list of runs: what it shows of each, how it is filtered and sorted, and operations on whole runs.

Begin with `summary`, one run in a few numbers; `run_list` has the summaries of all runs, and `cache` keeps
them on disk. A list is made of `columns` and `filters`; `notes` and `trash` change runs.
"""
