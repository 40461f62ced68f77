"""What an exception says, in one line: libraries raise with many, or with none at all, and then its type speaks.

first_line: most libraries say what is wrong and then go on.
last_line: vLLM lets a child's traceback end in it.
"""


def first_line(error: BaseException) -> str:
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
