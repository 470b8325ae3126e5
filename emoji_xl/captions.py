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


MADE_UP = 0.2
"""Share of captions with a made-up word, so that a word without meaning changes nothing.

A trigger word is one until its adapter is trained. Half of them stand behind the caption, a quarter
each in the style's place (then any style is right) and in the concept's (any concept is).
"""


def caption(style: str, concept: str, random_: random.Random) -> str:
    """One caption of a picture, drawn with `random_`."""
    templates = WITHOUT_STYLE if random_.random() < STYLE_LEFT_OUT else WITH_STYLE
    template = random_.choice(templates)
    if random_.random() >= MADE_UP:
        return fill(template, style, concept)
    word = made_up_word(random_)
    place = random_.random()
    if place < 0.25:
        return fill(template, word, concept)
    if place < 0.5:
        return fill(template, style, word)
    return f"{fill(template, style, concept)}, {word}{random_.choice(('', ' style'))}"


def made_up_word(random_: random.Random) -> str:
    """Draw a word of one to three syllables that means nothing."""
    syllables = [
        random_.choice(("", *"bcdfghjklmnprstvwz"))
        + random_.choice("aeiou")
        + random_.choice(("", "", *"klmnrstx"))
        for _ in range(random_.randint(1, 3))
    ]
    return "".join(syllables)


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
