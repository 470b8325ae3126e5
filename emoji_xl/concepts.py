"""What the pictures show and in which styles: the words of the base, and what it never sees.

A concept is an emoji, named by its CLDR label as emojibase has it; `RENAMED` gives some a plainer
name.
"""

import hashlib

TRAIN_STYLES = {
    "twemoji": "twemoji",
    "noto": "noto",
    "blob": "noto-v1",
    "firefox": "fxemoji",
    "emojione": "emojione",
    "flat": "fluent-emoji-flat",
    "fluent": "fluent-emoji",
}
"""Style word to Iconify package, for the styles that the base is trained on."""

HELD_OUT_STYLES = {
    "high-contrast": "fluent-emoji-high-contrast",
    "monotone": "emojione-monotone",
    "openmoji": "openmoji",
}
"""Styles that the base never sees and that adapters may learn."""

RESERVED_STYLES = {"streamline": "streamline-emojis", "emojione-v1": "emojione-v1"}
"""Styles that nothing of ours may touch: they are kept for later checks."""

PACKAGES = TRAIN_STYLES | HELD_OUT_STYLES | RESERVED_STYLES

GROUP_A = (
    "unicorn",
    "robot",
    "cactus",
    "snowman",
    "octopus",
    "rocket",
    "castle",
    "pineapple",
    "jack-o-lantern",
    "bicycle",
    "penguin",
    "mushroom",
    "t-rex",
    "ferris wheel",
    "crown",
    "guitar",
)
"""Concepts that the base never sees, in any style, and that adapters may learn."""

GROUP_B = (
    "owl",
    "sailboat",
    "umbrella",
    "teapot",
    "trumpet",
    "dragon",
    "sunflower",
    "hamburger",
)
"""Concepts that nothing of ours may touch: they are kept for later checks."""

HELD_OUT_PAIRS = 200
"""How many pairs of a trained concept and a trained style the base never sees together."""

# emojibase subgroups that hold things one can recognise in a small picture.
SUBGROUPS = [
    "animal-mammal",
    "animal-bird",
    "animal-amphibian",
    "animal-reptile",
    "animal-marine",
    "animal-bug",
    "plant-flower",
    "plant-other",
    "food-fruit",
    "food-vegetable",
    "food-prepared",
    "food-asian",
    "food-sweet",
    "drink",
    "dishware",
    "place-geographic",
    "place-building",
    "place-other",
    "transport-ground",
    "transport-water",
    "transport-air",
    "sky-weather",
    "event",
    "award-medal",
    "sport",
    "game",
    "arts-crafts",
    "clothing",
    "music",
    "musical-instrument",
    "phone",
    "computer",
    "light-video",
    "book-paper",
    "money",
    "mail",
    "writing",
    "office",
    "lock",
    "tool",
    "science",
    "medical",
    "household",
    "other-object",
    "sound",
    "hotel",
    "time",
]

SINGLES = (
    "grinning face",
    "winking face",
    "smiling face with heart-eyes",
    "smiling face with sunglasses",
    "angry face",
    "crying face",
    "sleeping face",
    "thinking face",
    "cowboy hat face",
    "nerd face",
    "skull",
    "ghost",
    "alien",
    "alien monster",
    "robot",
    "clown face",
    "pile of poo",
    "red heart",
    "blue heart",
    "green heart",
    "yellow heart",
    "purple heart",
    "broken heart",
    "heart with arrow",
    "collision",
    "speech balloon",
    "globe showing Americas",
)

# Near-duplicates of another concept, scenes without a subject, signs and text, symbols of one faith
# or country, and things that need more than 128 pixels.
EXCLUDED = frozenset(
    """
    monkey face|guide dog|service dog|cat|black cat|horse face|tiger|leopard|ox|water buffalo
    pig nose|boar|ewe|goat|two-hump camel|mouse|rat|rabbit|polar bear|deer|dog|pig|cow|moose|donkey
    hatching chick|front-facing baby chick|wing|black bird|goose|phoenix|dodo|dove
    dragon face|spouting whale|orca|seal|oyster|coral|squid|fish
    ant|cricket|cockroach|mosquito|fly|worm|microbe|bug|beetle
    bouquet|rosette|white flower|wilted flower|lotus|hyacinth|blossom
    herb|shamrock|sheaf of rice|leaf fluttering in wind|empty nest|leafless tree|palm tree
    lime|green apple|melon|root vegetable|brown mushroom|beans|leafy green|pea pod|ginger root
    flatbread|stuffed flatbread|tamale|falafel|shallow pan of food|fondue|salt|canned food|butter
    burrito|sandwich|meat on bone
    rice cracker|cooked rice|oden|fish cake with swirl|moon cake|roasted sweet potato|takeout box
    curry rice|fried shrimp|ice cream|candy|custard
    teacup without handle|clinking glasses|tumbler glass|pouring liquid|cup with straw|mate|sake
    baby bottle|clinking beer mugs|beverage box
    fork and knife with plate|chopsticks|amphora|jar
    landslide|mount fuji|mountain|camping|desert|desert island|national park|stadium|wood
    rock|building construction|hut|houses|derelict house|house|post office|bank|hotel
    love hotel|department store|convenience store|school|Japanese castle|Tokyo tower
    wedding|Japanese post office|foggy|night with stars|cityscape at dusk|sunrise
    sunrise over mountains|sunset|bridge at night|hot springs|playground slide|barber pole|cityscape
    railway car|high-speed train|train|metro|light rail|station|monorail|mountain railway|tram car
    oncoming bus|trolleybus|minibus|oncoming police car|oncoming taxi|oncoming automobile
    sport utility vehicle|pickup truck|manual wheelchair|motorized wheelchair|auto rickshaw|bus stop
    motorway|railway track|oil drum|wheel|police car light|horizontal traffic light|construction
    roller skate|locomotive|kick scooter
    ring buoy|ferry|motor boat|ship
    small airplane|airplane departure|airplane arrival|seat|suspension railway|mountain cableway
    aerial tramway
    new moon|waxing crescent moon|first quarter moon|waxing gibbous moon|waning gibbous moon
    last quarter moon|waning crescent moon|new moon face|first quarter moon face
    last quarter moon face|full moon face|sun behind cloud|sun behind large cloud
    sun behind rain cloud|cloud with lightning and rain|fog|wind face|cyclone|milky way|water wave
    umbrella with rain drops|umbrella on ground|closed umbrella|snowman without snow|star|comet
    sun with face|cloud with lightning
    sparkler|tanabata tree|pine decoration|Japanese dolls|carp streamer|moon viewing ceremony
    wind chime|ribbon|reminder ribbon|admission tickets|fireworks|confetti ball|red envelope
    2nd place medal|3rd place medal|military medal|sports medal
    softball|rugby football|cricket game|lacrosse|goal net|diving mask|martial arts uniform|skis
    field hockey|curling stone|running shirt|fishing pole|flag in hole
    mirror ball|nesting dolls|spade suit|heart suit|diamond suit|club suit|mahjong red dragon
    flower playing cards|joker|slot machine|chess pawn|video game
    knot|performing arts|sewing needle
    goggles|safety vest|lab coat|kimono|sari|briefs|shorts|bikini|woman’s clothes|coat|clutch bag
    handbag|shopping bags|thong sandal|flat shoe|woman’s sandal|ballet shoes|hair pick|woman’s boot
    military helmet|prayer beads|folding hand fan|one-piece swimsuit|man’s shoe|woman’s hat
    rescue worker’s helmet|hiking boot
    musical score|musical note|level slider|control knobs|studio microphone
    musical keyboard|long drum|trombone|harp|flute|banjo
    mobile phone with arrow|telephone receiver|pager
    low battery|trackball|dvd|optical disk|computer disk|computer mouse|keyboard
    film frames|camera with flash|magnifying glass tilted right|videocassette|film projector
    diya lamp|movie camera
    green book|orange book|notebook|ledger|page with curl|page facing up|rolled-up newspaper
    bookmark tabs|bookmark|label|notebook with decorative cover|blue book
    yen banknote|euro banknote|pound banknote|chart increasing with yen|receipt|treasure chest
    e-mail|incoming envelope|envelope with arrow|outbox tray|inbox tray
    closed mailbox with lowered flag|open mailbox with raised flag|open mailbox with lowered flag
    ballot box with ballot|postbox
    black nib|pen|memo
    open file folder|card index dividers|tear-off calendar|spiral notepad|spiral calendar|card index
    round pushpin|linked paperclips|card file box|chart increasing|chart decreasing|clipboard
    unlocked|locked with pen|locked with key|old key
    hammer and pick|hammer and wrench|link|broken chain|chains|hook|white cane|clamp|pick|shovel
    petri dish|crutch|x-ray|adhesive bandage|alembic
    elevator|mirror|window|plunger|shower|mouse trap|lotion bottle|safety pin|roll of paper|bubbles
    sponge|couch and lamp
    cigarette|funeral urn|nazar amulet|hamsa|placard|identification card|headstone
    muted speaker|speaker high volume|speaker low volume|speaker medium volume
    bell with slash|postal horn|megaphone
    hourglass not done|timer clock|mantelpiece clock
    """.replace("\n", "|")
    .replace("  ", "")
    .split("|")
)

RENAMED = {
    "T-Rex": "t-rex",
    "automobile": "car",
    "articulated lorry": "truck",
    "fire engine": "fire truck",
    "passenger ship": "cruise ship",
    "dog face": "dog",
    "cat face": "cat",
    "tiger face": "tiger",
    "cow face": "cow",
    "pig face": "pig",
    "mouse face": "mouse",
    "rabbit face": "rabbit",
    "baby chick": "chick",
    "tropical fish": "fish",
    "sauropod": "dinosaur",
    "honeybee": "bee",
    "lady beetle": "ladybug",
    "hot beverage": "coffee",
    "glass of milk": "milk",
    "beer mug": "beer",
    "bottle with popping cork": "champagne",
    "poultry leg": "chicken leg",
    "cut of meat": "steak",
    "soft ice cream": "ice cream cone",
    "shortcake": "cake slice",
    "steaming bowl": "ramen",
    "ear of corn": "corn",
    "baguette bread": "baguette",
    "house with garden": "house",
    "evergreen tree": "pine tree",
    "deciduous tree": "tree",
    "wrapped gift": "gift",
    "hourglass done": "hourglass",
    "closed book": "red book",
    "high-heeled shoe": "high heel",
    "vertical traffic light": "traffic light",
    "flying saucer": "ufo",
    "globe showing Americas": "earth",
    "magnifying glass tilted left": "magnifying glass",
    "closed mailbox with raised flag": "mailbox",
    "1st place medal": "gold medal",
    "Statue of Liberty": "statue of liberty",
    "Christmas tree": "christmas tree",
    "high voltage": "lightning bolt",
    "locked": "padlock",
    "collision": "explosion",
    "pool 8 ball": "billiard ball",
    "game die": "dice",
    "balance scale": "scales",
    "carpentry saw": "saw",
    "pile of poo": "poop",
    "alien monster": "space invader",
    "smiling face with heart-eyes": "heart eyes face",
    "smiling face with sunglasses": "sunglasses face",
    "snow-capped mountain": "mountain",
    "beach with umbrella": "beach",
    "sun behind small cloud": "sun and cloud",
    "cloud with rain": "rain cloud",
    "cloud with snow": "snow cloud",
    "drop of blood": "blood drop",
    "dollar banknote": "banknote",
    "straight ruler": "ruler",
}


def concept_name(label: str) -> str:
    """Name that prompts use for the emoji with this CLDR label."""
    return RENAMED.get(label, label.lower())


def is_concept(label: str, subgroup: str) -> bool:
    """Whether the emoji with this label and emojibase subgroup belongs to the data set."""
    if label in SINGLES:
        return True
    return subgroup in SUBGROUPS and label not in EXCLUDED and not _is_clock_face(label)


def _is_clock_face(label: str) -> bool:
    return label.endswith(("o’clock", "-thirty"))


def held_out_pairs(pairs: list[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """`HELD_OUT_PAIRS` of the (style, concept) pairs, chosen by a hash of their names."""

    def rank(pair: tuple[str, str]) -> str:
        return hashlib.sha256("/".join(pair).encode()).hexdigest()

    return frozenset(sorted(pairs, key=rank)[:HELD_OUT_PAIRS])
