"""Captions of the pictures: a concept, mostly with a style, in the words that people type."""

import random

WITH_STYLE = (
    "{concept}, {style} style",
    "{concept}, {style} style",
    "{a_concept}, {style} style",
    "{a_concept} in {style} style",
    "{style} {concept}",
    "{style} emoji of {a_concept}",
    "{a_style} style emoji of {a_concept}",
    "a picture of {a_concept}, {style} style",
    "a cute {concept}, {style} style",
)
WITHOUT_STYLE = ("{concept}", "{a_concept}", "an emoji of {a_concept}", "a cute {concept}")
STYLE_LEFT_OUT = 0.1
"""Share of captions that name no style, so that a bare concept is a prompt too."""


def with_article(noun: str) -> str:
    """`noun` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(style: str, concept: str, random_: random.Random) -> str:
    """One caption of a picture, drawn with `random_`."""
    templates = WITHOUT_STYLE if random_.random() < STYLE_LEFT_OUT else WITH_STYLE
    return fill(random_.choice(templates), style, concept)


def plain_caption(style: str, concept: str) -> str:
    """Build the caption that a prompt should have when in doubt."""
    return fill(WITH_STYLE[0], style, concept)


def fill(template: str, style: str, concept: str) -> str:
    """Put style and concept into a template."""
    return template.format(
        concept=concept,
        style=style,
        a_concept=with_article(concept),
        a_style=with_article(style),
    )
