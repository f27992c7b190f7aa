"""What libraries have against a text, in words that the catalog of messages knows: theirs are broken over lines."""

import yaml

from telechat_kit.messages import Message, marked

#: Longest text of a library that an error repeats
_MOST = 300


def yaml_fault(error: BaseException) -> str:
    """Why a text is no YAML, and where; PyYAML also repeats the line, which every editor shows."""
    if isinstance(error, RecursionError):
        return marked("nested too deep")
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem:
        return one_line(error)
    problem = _at(error.problem, error.problem_mark)
    if not error.context:
        return problem
    return Message("{context}: {problem}", context=_at(error.context, error.context_mark), problem=problem)


def _at(text: str, mark: yaml.Mark | None) -> str:
    said = " ".join(text.split())[:_MOST]
    if mark is None:
        return said
    return Message(
        "{said} (line {line}, column {column})", said=said, line=mark.line + 1, column=mark.column + 1
    )


def one_line(error: BaseException, most: int = _MOST) -> str:
    """What an error says, as one line of at most so many characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__
