"""`make reproduce`: what each weighting does in each environment, with several seeds and paired intervals.

cells.py       one training run with its tests, as data; families are lists of cells
places.py      the files that a cell trains and is tested on, made when they are missing
running.py     a cell -> its outcomes in a JSON file; many cells side by side, resumable
outcomes.py    finished cells as arrays
summary.py     tables, paired differences, and what must hold
published.py   the paper's figures, to stand beside
page.py        figures and the report
"""
