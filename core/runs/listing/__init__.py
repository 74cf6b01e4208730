"""The list of runs: what it shows of each, how it is filtered and sorted, and what is done with whole runs.

Begin with `summary`, one run in a few numbers; `run_list` has those of all runs, and `cache` keeps them on
disk. `columns` and `filters` are what a list is made of; `notes` and `trash` what is done with runs.
"""
