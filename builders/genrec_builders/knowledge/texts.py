"""Knowledge texts of the demo shop: what a language model could write about its users and items.

A text is made of facts and wording. The facts are those of the entity: a user's departments, brands, price tier, series
and shift of interest, all as its prompt shows them; an item's type, brand, line and series; and what shoppers take next
after a type, counted in the training part of the interactions. The wording comes from templates such as
`[mostly|mainly||above all] buys {department} things`: one of the alternatives in brackets, those behind `||` only in
the harder set. Often the choice is the habit of the entity's department, tier, or the like, so that similar entities
are written about alike and a model can learn it; otherwise it is free.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random

import numpy as np

from genrec.knowledge.prompt import DEFAULT_LIMITS, PromptLimits, item_prompt, user_prompt
from genrec_builders.data import Dataset, split_leave_one_out

_HABIT = (0.6, 0.45)  # of the choices follow the entity's habits, in the standard and in the harder set
_LEAST = 4  # sentences that are tried
_SWAPPED = 0.3  # of the texts have two neighbouring sentences in the other order

# Department -> (what for, what counts, where)
_DEPARTMENTS = {
    "Camping": (
        "weekend hikes|nights outdoors|long treks|trips to the hills||family camps|early starts on the trail",
        "low weight|dry gear|warmth at night||small pack size|quick setup|shelter from wind",
        "the campsite|the trail|the hut||the valley|a windy ridge",
    ),
    "Cycling": (
        "long rides|the daily commute|gravel tours|club rides||winter training|evening laps",
        "low drag|grip in the wet|being seen||comfort over distance|easy repairs|a snug fit",
        "the road|the bike path|the forest track||the velodrome|steep descents",
    ),
    "Fitness": (
        "home workouts|morning runs|yoga sessions|strength training||interval days|recovery weeks",
        "steady progress|a firm grip|good support||joint comfort|easy storage|a clear routine",
        "the gym|the living room|the park||the running track|a small studio",
    ),
    "Electronics": (
        "travel|daily charging|music at home|working on the move||long flights|a tidy desk",
        "fast charging|clear sound|long battery life||solid plugs|few cables|low noise",
        "the desk|the train|the bedside||the rucksack|the hotel room",
    ),
    "Photography": (
        "landscapes|portraits|city walks|travel pictures||night skies|wildlife",
        "sharp detail|good light|steady shots||fine colour|fast handling|safe transport",
        "the studio|the coast|old towns||the mountains|busy markets",
    ),
    "Home Office": (
        "long working days|video calls|focused writing|remote work||evening projects|shared desks",
        "an upright posture|a quiet room|a clear desk||less glare|free wrists|order",
        "the study|the spare room|the corner desk||the loft|the open office",
    ),
    "Kitchen": (
        "weeknight dinners|slow stews|baking days|cooking for guests||meal prep|family lunches",
        "even heat|a sharp edge|easy cleaning||sure handling|long wear|safe storage",
        "the stove|the worktop|the family table||the pantry|the oven",
    ),
    "Coffee": (
        "morning espresso|slow pour-overs|weekend brewing|coffee with friends||latte art|tasting new roasts",
        "a fine crema|an even grind|fresh aroma||stable heat|a clean cup|gentle brewing",
        "the coffee corner|the kitchen bar|the office||the balcony|the breakfast table",
    ),
    "Garden": (
        "spring planting|vegetable beds|summer watering|autumn pruning||growing herbs|care of the lawn",
        "rich soil|healthy roots|clean cuts||early harvests|less weeding|protection from frost",
        "the back garden|the balcony|the greenhouse||the allotment|the front yard",
    ),
    "DIY": (
        "small repairs|flat renovations|furniture building|wall mounting||outdoor projects|restoring old wood",
        "power on demand|clean holes|smooth surfaces||safe handling|exact fit|spare parts",
        "the workshop|the garage|the building site||the cellar|the garden shed",
    ),
    "Books": (
        "evening reading|long series|rainy weekends|holiday reading||book clubs|letters and notes",
        "a gripping plot|rich worlds|fine paper||strong characters|a smooth nib|a surprising end",
        "the armchair|the bedside|the library||the night train|the writing desk",
    ),
    "Games": (
        "game nights|long campaigns|family evenings|solo quests||tournaments|rainy afternoons",
        "clever rules|good stories|fair dice||tense duels|sturdy parts|fast rounds",
        "the living room|the game table|the club||the kitchen table|the couch",
    ),
}
# (how it is called, what the buyer wants of it)
_TIERS = (
    (
        "low-priced|inexpensive|budget||affordable|thrifty|bargain",
        "a fair price|value for money|a good deal||small bills|honest basics|low cost",
    ),
    (
        "mid-priced|solid|reasonably priced||middle-of-the-road|well-balanced|sensible",
        "a balance of price and quality|dependable quality|no surprises||fair quality|proven makes|good sense",
    ),
    (
        "premium|high-end|upmarket||exclusive|top-shelf|first-rate",
        "the best finish|lasting quality|fine materials||refined details|craftsmanship|the top of the range",
    ),
)

# Words that are drawn anew wherever a template names them.
_WORDS = {
    "how": "clearly|evidently|plainly|surely|visibly|readily|steadily|easily||obviously|undoubtedly|gladly|quietly|"
    "firmly|happily|calmly|carefully|patiently|openly|simply|naturally|certainly|regularly|willingly|eagerly|sensibly",
    "kind": "good|useful|sturdy|practical|simple|modern|classic|reliable||neat|trusty|handy|clever|handsome|plain|"
    "light|robust|elegant|honest|compact|durable|stylish|smart|refined|timeless|versatile|everyday|charming",
    "degree": "little|clear|growing|lively|small|real|fresh|lasting||mild|strong|curious|budding|passing|marked|"
    "modest|genuine|warm|keen|faint|quiet|recent|sudden|steady|hearty|gentle|cautious|playful",
}

# Sentences in their usual order: (share of the texts in the standard and in the harder set, templates). A template is
# used only where every fact that it names is known.
_Sentences = tuple[tuple[float, float, tuple[str, ...]], ...]
_USER: _Sentences = (
    (
        1.0,
        1.0,
        (
            "[This shopper|The customer|This buyer||This account|The person here] [mostly|mainly|chiefly||above"
            " all|by and large] [buys|shops for|looks for||goes for|collects] {kind} {department}"
            " [products|goods|things||items|gear], [with a|and has a|plus a||next to a|on top of a] {degree}"
            " [interest in|taste for|leaning towards||feeling for|weakness for] {second}.",
            "{department} is [the main interest|the clear focus|the favourite department||the centre of"
            " attention|the first love] [here|of this shopper|of the customer||by a wide margin|at the moment],"
            " [followed by a|then a|next to a||closely trailed by a|with a] {degree} [interest in|taste"
            " for|leaning towards||feeling for|weakness for] {second}.",
            "[Nearly everything|Almost all|The bulk||The lion's share|Practically all] [in this history|among"
            " these orders|in the recent baskets||on this account|that was bought] [is|comes from|belongs"
            " to||falls under|can be put down to] {department}: {kind} [things|goods|products||items|gear],"
            " {how} [chosen|picked|bought||selected|put together].",
            "[A typical|A loyal|A keen||A devoted|A seasoned] {department}"
            " [shopper|customer|fan||enthusiast|regular], [who mostly plans for|with an eye on|buying"
            " for||getting ready for|at home with] {activity}[, who|; one who|, a person who||; someone who|,"
            " and one who] {how} [picks|chooses|compares||weighs up|selects] {kind}"
            " [products|goods|things||items|gear].",
        ),
    ),
    (
        0.75,
        0.8,
        (
            "[The purchases|The orders|Most choices||The baskets|These picks] {how} [point to|suggest|hint"
            " at||speak of|tell of] {activity}, [where|for which|so that||and there|a field where] [much depends"
            " on|one needs|it takes||nothing beats|people pay for] {virtue}.",
            "[For|When it comes to|With a view to||In matters of|As for] {activity}, {virtue} and {virtue2}"
            " {how} [count|matter|come first||weigh most|carry the decision].",
            "[What is bought|The choice of products|The selection||The mix of items|All that] {how}"
            " [fits|suits|goes with||belongs to|looks right for] {activity} [around|at|near||close to|at or"
            " near] {place}.",
        ),
    ),
    (
        0.8,
        0.85,
        (
            "[{brand} is the brand of choice|{brand} is {how} preferred|The favourite brand is {brand}||{brand}"
            " turns up again and again|No maker is trusted like {brand}], [mostly|usually|generally||as a"
            " rule|more often than not] [in the {tier} range|among {tier} products|where things are {tier}||at"
            " the {tier} end|on the {tier} shelves].",
            "[Prefers|Favours|Tends towards||Leans towards|Has a soft spot for] {kind}, {tier}"
            " [products|goods|brands||makes|labels], [above all|especially|such as||first of all|notably]"
            " {brand}, and [expects|wants|looks for||insists on|hopes for] {worth}.",
            "[No single brand stands out|Brands change often|There is no favourite brand||Labels come and"
            " go|Loyalty to one maker is not seen] [among|in|across||within|throughout] {labels}"
            " [brands|makers|labels||names|houses], [but|though|and yet||while|even so] {tier}"
            " [products|goods|choices||options|articles] [dominate|are most common|prevail||win out|are the"
            " norm].",
            "[Wants|Expects|Looks for||Asks for|Sets store by] {worth} [and tends to choose|and mostly"
            " picks|and so prefers||hence the taste for|and likes] {kind} and {tier}"
            " [products|goods|items||makes|articles].",
        ),
    ),
    (
        0.9,
        0.9,
        (
            "[Follows|Is in the middle of|Collects||Is hooked on|Works through] {series} and has {how}"
            " [reached|got to|bought||arrived at|come as far as] {volume}; {next_volume} [should be next|is the"
            " natural next step|will likely follow||is due soon|ought to sell itself].",
            "[The series|The set|The story||The saga|The run of] {series} is {how} [under way|being"
            " collected|well begun||in progress|not finished yet], [so|and so|which means||hence|and by rights]"
            " {next_volume} [is the obvious offer|would be welcome|comes next||is the safest bet|should be shown"
            " first].",
        ),
    ),
    (
        0.85,
        0.9,
        (
            "[Recently|Lately|In the last orders||Of late|Most recently] [the interest has moved|the focus has"
            " shifted|attention went||the taste has drifted|there was a turn] from {before} to {now}, [with|seen"
            " in|above all||as shown by|most visibly in] {kind} {type}.",
            "[A new interest|A change|A shift of taste||A fresh start|A detour] [is showing|can be"
            " seen|appears||is taking shape|stands out]: {now} [after|instead of|in place of||on top of|rather"
            " than] {before}, a {degree} [change|step|turn||move|surprise], [starting with|namely|for"
            " example||to begin with|that is] {type}.",
            "[The interest is steady|Tastes have not changed|The pattern is stable||Nothing points to a"
            " change|The line is constant]: [again|still|as before||once more|yet again] {same}, [now|this"
            " time|lately||at present|for now] {kind} {type}, {how} [chosen|picked|bought||selected|put"
            " together].",
        ),
    ),
    (
        0.6,
        0.75,
        (
            "[The latest purchase is|Last bought was|The newest item is||The most recent order was|At the end"
            " of the list stands] {last}.",
            "[After|Before|Besides||Not long after|In addition to] {earlier_type}, {last} was {how}"
            " [chosen|added|taken||picked up|put into the basket].",
        ),
    ),
    (
        1.0,
        1.0,
        (
            "[Good suggestions|Sensible offers|Fitting next steps||Worthwhile ideas|Safe recommendations]"
            " [are|would be|include||might be|could well be] {kind} {follows} [and|or|as well as||along with|or"
            " else] {follows2}.",
            "[Next|Soon|In the coming weeks||Before long|With the next order] [it may be time for|the shopper"
            " may need|one would expect||there could be room for|the way leads to] {kind} {follows},"
            " [perhaps|possibly|maybe||preferably|ideally] [from {brand}|also {follows2}|something {tier}||with"
            " {virtue} in mind|together with {follows2}].",
            "[Show|Recommend|Offer||Put forward|Try] {kind} {follows} [first|next|now||without delay|to start"
            " with], [then|and later|followed by||after that|and in time] {follows2}.",
        ),
    ),
    (
        0.0,
        0.4,
        (
            "[Messages|Newsletters|Campaigns] [about|around|on] {activity} [are {how} read|should find an open"
            " ear|{how} strike a chord|have a {degree} chance], [the more so if|provided|as long as] they"
            " [promise|mention|stress] {virtue}.",
            "[Discounts|Price cuts|Vouchers] [matter less than|may count for more than|come second to|rank"
            " below] {worth} [here|for such a shopper|in this case|on this account].",
            "[With {count} recent orders|Judging by {count} orders|Going by {count} items], [the picture is|the"
            " profile is|this impression is] [fairly clear|still open|sound enough|worth a second look].",
        ),
    ),
)
_ITEM: _Sentences = (
    (
        1.0,
        1.0,
        (
            "[|Surely, |In short, ||Once more, |Of course, ]{title}[ is|, by {brand}, is| is always||, no more"
            " and no less, is|, to be exact, is] [a|one more|another||very much a|every inch a] {kind} and"
            " {tier} [choice|pick|option||candidate|proposition] [among|in|within||from the world of|for lovers"
            " of] {type}.",
            "{title}: [a|one more|another||simply a|truly a] {tier} and {kind}"
            " [product|offer|piece||article|entry] [for|made for|meant for||aimed at|with a mind to] {activity}.",
            "[In|Among|Within||Out of all|Across] {department}, {title} {how} [stands"
            " for|offers|promises||delivers|makes a case for] {virtue} [and|as well as|together with||next"
            " to|besides] {virtue2}.",
        ),
    ),
    (
        0.85,
        0.9,
        (
            "[It belongs to|It is part of|It comes from||It sits in|It rounds off] the {line}"
            " [line|range|series||family|collection] by {brand}, a {kind} [choice|offer|pick||solution|find],"
            " [in the version|here as|built as||in the form of|sold as] {model}.",
            "[{brand} made it|It was designed|The {line} line was made||{brand} had it drawn up|The makers"
            " planned it] [for|to suit|around||on the basis of|in view of] {activity}[ and|, so it| and so||;"
            " naturally it|, which is why it] {how} [offers|stands for|brings||promises|delivers] {virtue}.",
            "[It is|This is|Here comes||We have here|What you get is] {volume} of {series}, {how} [made by|put"
            " out by|published by||brought out by|produced by] {brand}.",
            "[As|Being|Listed as||Counted as|In its place as] {volume} of {series}, it {how} [continues|carries"
            " on|belongs to||moves along|deepens] [the story|the set|a much-loved run||a long arc|what came"
            " before].",
        ),
    ),
    (
        0.8,
        0.85,
        (
            "[Buyers|Customers|Shoppers||Owners|Users] {how} [get|expect|find||count on|receive] {worth},"
            " [plus|and also|with||not to mention|topped by] {virtue} [at|near|around||close to|back at]"
            " {place}.",
            "[It suits|It is right for|It works well for||It earns its keep in|It shines during] {activity},"
            " [where|since|because||given that|as] [much depends on|one needs|it takes||nothing beats|people pay"
            " for] {virtue} and {kind} [design|parts|details||ideas|forms].",
            "[People who value|Buyers after|Those who want||All who insist on|Friends of] {worth} will {how}"
            " [like it|be well served|look here||look no further|feel at home].",
        ),
    ),
    (
        0.6,
        0.75,
        (
            "[At home in|Made for|Best used in||Just right for|Fit for] {place}, it {how}"
            " [keeps|gives|brings||lends|adds] {virtue2} [every day|for years|when needed||with no fuss|at any"
            " hour].",
            "[A {tier} make|Its {tier} build|The {tier} finish||The {tier} approach|Its {tier} nature] {how}"
            " [shows|impresses|convinces||leaves its mark|speaks for itself], [even|also|above all||most of"
            " all|not least] at {place}.",
        ),
    ),
    (
        1.0,
        1.0,
        (
            "[Goes well with|Pairs with|Often bought with||Combines nicely with|Makes a set with] {kind}"
            " {follows}[ and| or|, and later||, or even| or, at a pinch,] {follows2}.",
            "[Afterwards|Next|Later||In due course|Down the line] [many|most buyers|people||quite a few|a good"
            " number] [choose|look for|need||turn to|ask for] {kind} {follows}, [ideally|often|preferably||if"
            " possible|sooner or later] [from {brand}|with {follows2}|something {tier}||to go with"
            " {virtue}|alongside {follows2}].",
            "[Readers|Fans|Collectors||Followers|Those who began] {how} [go on to|continue with|move on"
            " to||reach for|wait for] {next_volume}[, or try| and| or look at||, then perhaps| and in time]"
            " {follows}.",
        ),
    ),
    (
        0.0,
        0.45,
        (
            "[A thought for|A tip for|A hint for] [gift givers|first-time buyers|the undecided]: [think of|keep"
            " in mind|consider] {activity}, [then|only then|and after that] [decide|choose|compare].",
            "[Ratings|Reviews|Comments] [praise|single out|mention] {virtue2}, [rarely|hardly ever|almost"
            " never] the [price|delivery|packaging], [which fits|as befits|in keeping with] a {tier}"
            " [label|maker|name].",
            "[Stored|Kept|Placed] [well|with care|properly], it {how} [lasts|serves|holds up] for [years|many"
            " seasons|a long while] [at|around|not far from] {place}.",
        ),
    ),
)

_Known = tuple[dict[str, str], list[str]]  # facts by name; what habits depend on: department, tier, then finer things
_SLOT = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_FIELD = re.compile(r"\{(\w+)\}")
_VOLUME = re.compile(r"(?P<series>.+?),? (?P<kind>Book|Case|Volume|Vol\.|Part|Expansion) (?P<number>\d+)")


@dataclass(frozen=True)
class KnowledgeText:
    """A text about one entity. group: its department. prompt: what a model is given to write `text`."""

    entity: str
    group: str
    prompt: str
    text: str


def user_texts(
    dataset: Dataset, seed: int = 0, *, harder: bool = False, limits: PromptLimits = DEFAULT_LIMITS
) -> list[KnowledgeText]:
    """A summary of every user, of the newest items that its prompt shows.

    Only the training part of the interactions is seen: the last two items of a user stay unknown, so that a text can be
    a feature in predicting them. The group is the department that most of the shown items have. A user's text depends
    on the seed, the user and the dataset alone. Raises ValueError for items of other shops' departments.
    """
    attributes, after = _rows(dataset), _followers(dataset)
    histories = split_leave_one_out(dataset.interactions).train
    written = []
    for number, user in enumerate(histories.users.tolist()):
        entity = dataset.interactions.user_ids[user]
        history = [attributes[row] for row in histories[number].tolist()]
        facts, habits = _user_facts(history[-limits.shown_items :], after)
        text = _write(_USER, facts, habits, f"{seed}/user/{entity}", harder)
        written.append(KnowledgeText(entity, facts["department"], user_prompt(history, limits), text))
    return written


def item_texts(
    dataset: Dataset, seed: int = 0, *, harder: bool = False, limits: PromptLimits = DEFAULT_LIMITS
) -> list[KnowledgeText]:
    """A description of every item. Raises ValueError for items of other shops' departments."""
    after = _followers(dataset)
    written = []
    for entity, item in zip(dataset.items.item_ids, _rows(dataset), strict=True):
        facts, habits = _item_facts(item, after)
        text = _write(_ITEM, facts, habits, f"{seed}/item/{entity}", harder)
        written.append(KnowledgeText(entity, facts["department"], item_prompt(item, limits), text))
    return written


def split_texts(texts: Sequence[KnowledgeText]) -> tuple[list[KnowledgeText], list[KnowledgeText]]:
    """(to train on, held out): one entity in ten is held out, the same one in every set and for every seed."""
    parts: tuple[list[KnowledgeText], list[KnowledgeText]] = ([], [])
    for text in texts:
        parts[_number(f"held out/{text.entity}") % 10 == 0].append(text)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Facts


def _rows(dataset: Dataset) -> list[dict[str, str]]:
    """The attributes of every item."""
    columns = dataset.items.attributes
    missing = {"title", "category", "brand"} - columns.keys()
    if missing:
        raise ValueError(f"the items have no {', '.join(sorted(missing))}; the texts are for the demo shop's items")
    unknown = {category.partition(" > ")[0] for category in columns["category"]} - _DEPARTMENTS.keys()
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no department of the demo shop; the texts are for its items")
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _followers(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Per category, the two other ones most often bought next, in the training part."""
    names, codes = np.unique(dataset.items.attributes["category"], return_inverse=True)
    train = split_leave_one_out(dataset.interactions).train
    category, n = codes[train.rows], len(names)
    inside = np.ones(len(category), bool)
    inside[train.offsets[1:] - 1] = False  # the last item of a user has none after it
    steps = category[:-1][inside[:-1]] * n + category[1:][inside[:-1]]
    counts = np.bincount(steps, minlength=n * n).reshape(n, n)
    np.fill_diagonal(counts, -1)
    best = np.argsort(-counts, axis=1, kind="stable")[:, :2]
    return {str(names[row]): (_type(str(names[a])), _type(str(names[b]))) for row, (a, b) in enumerate(best)}


def _type(category: str) -> str:
    return category.partition(" > ")[2].lower()


def _tier(brand: str) -> int:
    """The shop has no prices: that a brand is 0 low-priced, 1 in between, 2 premium, is made up here."""
    return _number(brand) % 3


def _series_facts(title: str) -> dict[str, str]:
    """The series that a title belongs to, its volume and the next one; nothing for other titles."""
    match = _VOLUME.fullmatch(title.replace(": Expansion", ", Expansion"))
    if not match:
        return {}
    kind, number = match["kind"], int(match["number"])
    return {"series": match["series"], "volume": f"{kind} {number}", "next_volume": f"{kind} {number + 1}"}


def _user_facts(history: Sequence[Mapping[str, str]], after: Mapping[str, tuple[str, str]]) -> _Known:
    categories = [item["category"] for item in history]
    departments = [category.partition(" > ")[0] for category in categories]
    by_count = _most_common(departments)
    # Series have a publisher, which the prompt does not show; other titles begin with their brand.
    brands = [item["brand"] for item in history if item["title"].startswith(item["brand"])]
    tier = round(sum(map(_tier, brands)) / len(brands)) if brands else 1
    earlier, now = departments[: -(len(departments) // 3) or None], departments[-1]
    before = _most_common(earlier)[0]
    facts = {
        "department": by_count[0],
        "now": now,
        "type": _type(categories[-1]),
        "last": history[-1]["title"],
        "follows": after[categories[-1]][0],
        "follows2": after[categories[-1]][1],
        "count": str(len(history)),
    }
    optional = {
        "second": by_count[1] if len(by_count) > 1 else "",
        "brand": _most_common(brands)[0] if len(brands) - len(set(brands)) else "",
        "before": before if before != now else "",
        "same": now if before == now else "",
        "labels": str(len(set(brands))) if len(brands) == len(set(brands)) > 1 else "",
        "earlier_type": _type(categories[-2]) if len(history) > 1 else "",
    }
    facts |= {name: value for name, value in optional.items() if value}
    for item in history:  # the series begun last
        facts |= _series_facts(item["title"])
    return facts, [
        by_count[0],
        str(tier),
        now if before != now else "steady",
        categories[-1],
        brands[-1] if brands else "",
    ]


def _item_facts(item: Mapping[str, str], after: Mapping[str, tuple[str, str]]) -> _Known:
    title, brand, category = item["title"], item["brand"], item["category"]
    department, tier = category.partition(" > ")[0], _tier(brand)
    facts = {
        "title": title,
        "brand": brand,
        "department": department,
        "type": _type(category),
        "follows": after[category][0],
        "follows2": after[category][1],
    }
    if series := _series_facts(title):
        facts |= series
    elif title.startswith(brand):
        facts["line"], _, facts["model"] = title.removeprefix(brand).strip().partition(" ")
    return facts, [department, str(tier), category, brand]


def _most_common(values: Sequence[str]) -> list[str]:
    """The distinct values, most frequent first; the newest of equally frequent ones."""
    return [value for value, _ in Counter(reversed(values)).most_common()]


# ---------------------------------------------------------------------------------------------------------------------
# Wording


class _Wording:
    """Chooses among alternatives for one text."""

    def __init__(self, facts: dict[str, str], habits: Sequence[str], rng: Random, harder: bool) -> None:
        # In the harder set, habits also depend on finer things, such as the brand.
        self.facts, self._habits, self._rng, self._harder = facts, habits if harder else habits[:-1], rng, harder
        activity, virtue, place = _DEPARTMENTS[facts["department"]]
        tier, worth = _TIERS[int(habits[1])]
        self.facts |= {"activity": self.choose(activity), "place": self.choose(place), "virtue": self.choose(virtue)}
        self.facts |= {"virtue2": self.choose(virtue, self.facts["virtue"])}
        self.facts |= {"tier": self.choose(tier), "worth": self.choose(worth)}

    def sentence(self, templates: tuple[str, ...]) -> str:
        """A sentence from one of `templates`, or "" if each needs an unknown fact."""
        known = frozenset(self.facts)
        usable = _usable(templates, known, self._harder)
        if not usable:
            return ""
        filled = _SLOT.sub(lambda slot: self._pick(_alternatives(slot[1], known, self._harder)), self._pick(usable))
        text = _FIELD.sub(lambda field: self.facts.get(field[1]) or self.choose(_WORDS[field[1]]), filled)
        return _ARTICLE.sub(r"\1n ", text[0].upper() + text[1:])

    def choose(self, words: str, taken: str = "") -> str:
        """One of `words`, not `taken`."""
        return self._pick([word for word in _alternatives(words, frozenset(), self._harder) if word != taken])

    def _pick(self, alternatives: Sequence[str]) -> str:
        if self._rng.random() >= _HABIT[self._harder]:
            return self._rng.choice(alternatives)
        key = "|".join(alternatives)
        habit = self._habits[_number(key) % len(self._habits)]
        return alternatives[_number(f"{key}/{habit}") % len(alternatives)]


@cache
def _number(text: str) -> int:
    """A number that depends on the text alone, in every run."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


@cache
def _alternatives(slot: str, known: frozenset[str], harder: bool) -> list[str]:
    """Those of a set of texts, without what needs a fact that is not known."""
    usual, _, more = slot.partition("||")
    return [text for text in usual.split("|") + (more.split("|") if more and harder else []) if _needs(text) <= known]


@cache
def _usable(templates: tuple[str, ...], known: frozenset[str], harder: bool) -> list[str]:
    return [
        template
        for template in templates
        if _needs(_SLOT.sub("", template)) <= known
        and all(_alternatives(slot, known, harder) for slot in _SLOT.findall(template))
    ]


def _needs(text: str) -> set[str]:
    """The facts that `text` names."""
    return set(_FIELD.findall(text)) - _WORDS.keys()


def _write(sentences: _Sentences, facts: dict[str, str], habits: Sequence[str], seed: str, harder: bool) -> str:
    rng = Random(seed)
    wording = _Wording(facts, habits, rng, harder)
    shares = [more if harder else usual for usual, more, _ in sentences]
    # Below 1 with the probability `share`; where that gives too few sentences, the likeliest others join.
    draws = [rng.random() / share if share else math.inf for share in shares]
    bar = max(1.0, sorted(draws)[_LEAST - 1])
    chosen = (templates for draw, (_, _, templates) in zip(draws, sentences, strict=True) if draw <= bar)
    written = [text for text in map(wording.sentence, chosen) if text]
    if rng.random() < _SWAPPED and len(written) > 3:
        at = rng.randrange(1, len(written) - 2)
        written[at], written[at + 1] = written[at + 1], written[at]
    return " ".join(written)
