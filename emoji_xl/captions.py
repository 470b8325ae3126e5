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
WITHOUT_CONCEPT = ("{style} style", "an emoji in {style} style", "{style} emoji")
STYLE_LEFT_OUT = 0.08
"""Share of captions that name no style, so that a bare concept is a prompt too."""
CONCEPT_LEFT_OUT = 0.05
"""Share of captions that name no concept, so that a style is learned apart from what it shows."""
MODIFIER_FIRST = 0.2
"""Share of modifiers that stand before the caption and not behind it."""


def with_article(noun: str) -> str:
    """`noun` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(style: str, concept: str, random_: random.Random) -> str:
    """One caption of a picture, drawn with `random_`."""
    return fill(_template(random_), style, concept)


def modified_caption(style: str, concept: str, random_: random.Random, modifier: str) -> str:
    """One caption of a picture that was changed by a modifier."""
    base = caption(style, concept, random_)
    return f"{modifier} {base}" if random_.random() < MODIFIER_FIRST else f"{base}, {modifier}"


def made_up_caption(style: str, concept: str, random_: random.Random) -> str:
    """One caption with a word that means nothing, as a trigger word is before it is trained.

    Mostly it stands behind; else in the style's place (any style is right) or the concept's.
    """
    template, word, place = _template(random_), made_up_word(random_), random_.random()
    if place < 0.2:
        return fill(template, word, concept)
    if place < 0.4:
        return fill(template, style, word)
    return f"{fill(template, style, concept)}, {word}{random_.choice(('', ' style'))}"


def _template(random_: random.Random) -> str:
    draw = random_.random()
    if draw < STYLE_LEFT_OUT:
        return random_.choice(WITHOUT_STYLE)
    if draw < STYLE_LEFT_OUT + CONCEPT_LEFT_OUT:
        return random_.choice(WITHOUT_CONCEPT)
    return random_.choice(WITH_STYLE)


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
