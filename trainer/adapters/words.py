"""What the reports have in common."""


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
