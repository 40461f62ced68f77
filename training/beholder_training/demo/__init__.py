"""`make demo`: the whole of Beholder in minutes, on the built-in data.

models.py makes the world, a base that sees, and three reward models; serving.py serves one and ranks over HTTP;
report.py prints. __main__.py is the story, in order.
"""
