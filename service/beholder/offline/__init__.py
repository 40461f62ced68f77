"""Files of responses to files of scores: resumable, in order, on one machine, on running services or on a Ray cluster.

tasks.py        a row of the input -> what is to be scored
scorers.py      who scores it: an engine in this process, or services by URL
pipeline.py     a bounded window of records in flight, results in order
journal.py      what was scored so far, safe against a kill
results.py      the finished file
scoring.py      `score_file`: these together
engines.py      several engines on this machine
ray_scoring.py  the same with an engine on each accelerator of a cluster
selection.py    best-of-N, filters and preference pairs from scored responses
"""
