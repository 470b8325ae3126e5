"""How long something takes, in words."""


def duration(seconds: float) -> str:
    """A time as people say it: "1 s", "2 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
