"""What was measured, to look at: figures as PNG, and one HTML page that needs nothing beside it.

figures.py      numbers -> PNG
page.py         headline figures, tables, pictures -> HTML; every text is escaped
gallery.py      pairs on which two models disagree
evaluation.py   an Evaluation -> a folder with evaluation.json, PNG figures and report.html
"""
