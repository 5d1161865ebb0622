"""A made-up shop to try the stack on: a catalogue with readable titles and shoppers whose histories can be learnt.

What there is to learn, roughly from easy to hard: accessories follow the thing that they belong to (a tent, then the
footprint of its brand and size); volumes of a series are bought in order, also after a detour; shoppers stay in a
department for a while, come back to a few departments, and keep to brands of their price tier; interests drift slowly.
Popularity has a long tail, and some purchases are noise. All names are invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from genrec_builders.data import Dataset, Interactions, ItemTable
from genrec_builders.data.demo_shop.queries import make_queries

EMBEDDING_DIM = 64
NOISE = 0.5
MIN_LENGTH, MAX_LENGTH = 5, 60

# Department -> (line names, brands, product types). A type is (plural, singular, variants, accessory types).
_Type = tuple[str, str, tuple[str, ...], tuple[str, ...]]
_SIZES = ("1-Person", "2-Person", "3-Person", "4-Person")
_WEAR = ("Small", "Medium", "Large")
_PHONES = ("for Mira 5", "for Mira 6", "for Onda X", "for Onda Z")
_WATTS = ("30W", "45W", "65W", "100W")
_LENSES = ("49 mm", "58 mm", "67 mm", "77 mm")
_CUPS = ("2-Cup", "4-Cup", "6-Cup", "8-Cup")
_VOLTS = ("12 V", "18 V", "36 V")
_INCHES = ('24"', '27"', '32"', '34"')
_BEDS = ("1 x 1 m", "1 x 2 m", "2 x 3 m")
_POTS = ("18 cm", "20 cm", "24 cm", "28 cm")

_DEPARTMENTS: dict[str, tuple[str, str, tuple[_Type, ...]]] = {
    "Camping": (
        "Alpine Tundra Ridge Basecamp Nomad Fjord Timber Summit",
        "Fjellheim Tarnvik Northlark Mossgate Drumlin Wrenfield Basalt&Birch Ironquay",
        (
            ("Tents", "Tent", _SIZES, ("Footprints", "Sleeping Mats")),
            ("Footprints", "Tent Footprint", _SIZES, ("Sleeping Mats",)),
            ("Sleeping Mats", "Sleeping Mat", ("Regular", "Wide", "Long"), ("Sleeping Bags",)),
            ("Sleeping Bags", "Sleeping Bag", ("0 °C", "-5 °C", "-10 °C"), ("Head Torches",)),
            ("Stoves", "Gas Stove", ("1-Burner", "2-Burner"), ("Camp Cookware",)),
            ("Camp Cookware", "Cook Set", _SIZES, ("Head Torches",)),
            ("Head Torches", "Head Torch", ("200 lm", "350 lm", "500 lm"), ()),
        ),
    ),
    "Cycling": (
        "Gravel Velodrome Breeze Cobble Descent Peloton Switchback Tailwind",
        "Kestrel Halcyra Tarnvik Vantor Zephyrine Palisade Rivet&Rye Drumlin",
        (
            ("Helmets", "Helmet", _WEAR, ("Gloves", "Lights")),
            ("Gloves", "Cycling Gloves", _WEAR, ("Jerseys",)),
            ("Jerseys", "Jersey", _WEAR, ()),
            ("Lights", "Light Set", ("400 lm", "800 lm", "1200 lm"), ("Locks",)),
            ("Locks", "Folding Lock", ("80 cm", "100 cm", "120 cm"), ()),
            ("Tyres", "Tyre", ("700x28", "700x32", "700x40"), ("Inner Tubes",)),
            ("Inner Tubes", "Inner Tube", ("700x28", "700x32", "700x40"), ("Mini Pumps",)),
            ("Mini Pumps", "Mini Pump", ("100 psi", "120 psi"), ()),
        ),
    ),
    "Fitness": (
        "Pulse Core Stride Tempo Flex Momentum Balance Endure",
        "Halcyra Solvane Emberly Northlark Quillon Vantor Brightwell Pacer&Pine",
        (
            ("Yoga Mats", "Yoga Mat", ("4 mm", "6 mm", "8 mm"), ("Yoga Blocks",)),
            ("Yoga Blocks", "Yoga Block Pair", ("Cork", "Foam"), ("Resistance Bands",)),
            ("Resistance Bands", "Resistance Band", ("Light", "Medium", "Heavy"), ()),
            ("Dumbbells", "Dumbbell Pair", ("2 x 4 kg", "2 x 8 kg", "2 x 12 kg"), ("Benches",)),
            ("Benches", "Training Bench", ("Flat", "Adjustable"), ()),
            ("Running Shoes", "Running Shoes", ("Neutral", "Stability", "Trail"), ("Running Socks", "Sports Watches")),
            ("Running Socks", "Running Socks", _WEAR, ()),
            ("Sports Watches", "Sports Watch", ("40 mm", "44 mm", "47 mm"), ()),
        ),
    ),
    "Electronics": (
        "Volt Ion Nova Quanta Arc Signal Photon Axis",
        "Kestrel Voltaro Lumenor Quillon Copperline Stonegate Caldera Onda",
        (
            ("Chargers", "USB-C Charger", _WATTS, ("Cables",)),
            ("Cables", "USB-C Cable", ("0.5 m", "1 m", "2 m", "3 m"), ()),
            ("Power Banks", "Power Bank", ("5,000 mAh", "10,000 mAh", "20,000 mAh"), ("Cables",)),
            ("Phone Cases", "Phone Case", _PHONES, ("Screen Protectors",)),
            ("Screen Protectors", "Screen Protector", _PHONES, ("Chargers",)),
            ("Headphones", "Headphones", ("On-Ear", "Over-Ear", "Open-Back"), ("Headphone Stands",)),
            ("Headphone Stands", "Headphone Stand", ("Walnut", "Aluminium"), ()),
            ("Speakers", "Bluetooth Speaker", ("10W", "20W", "40W"), ()),
        ),
    ),
    "Photography": (
        "Aperture Prism Chroma Focal Vista Bokeh Lumen Atelier",
        "Lumenor Caldera Halcyra Fjellheim Aldersea Vantor Quillon Parallax",
        (
            ("Cameras", "Mirrorless Camera", ("20 MP", "24 MP", "33 MP"), ("Lenses", "Memory Cards")),
            ("Lenses", "Prime Lens", _LENSES, ("Lens Filters",)),
            ("Lens Filters", "Polarising Filter", _LENSES, ("Camera Bags",)),
            ("Memory Cards", "Memory Card", ("64 GB", "128 GB", "256 GB"), ("Camera Bags",)),
            ("Camera Bags", "Camera Bag", ("6 L", "10 L", "18 L"), ()),
            ("Tripods", "Carbon Tripod", ("120 cm", "150 cm", "180 cm"), ("Tripod Heads",)),
            ("Tripod Heads", "Ball Head", ("8 kg", "12 kg", "20 kg"), ()),
        ),
    ),
    "Home Office": (
        "Studio Linea Forma Slate Norden Contour Ledger Loft",
        "Oakmoor Stonegate Quillon Voltaro Brightwell Marrow&Finch Copperline Palisade",
        (
            ("Desks", "Standing Desk", ("120 cm", "140 cm", "160 cm"), ("Desk Chairs", "Desk Mats")),
            ("Desk Chairs", "Desk Chair", ("Mesh", "Fabric", "Leather"), ()),
            ("Desk Mats", "Desk Mat", ("60 x 30 cm", "90 x 40 cm"), ("Keyboards",)),
            ("Keyboards", "Keyboard", ("60%", "75%", "Full-Size"), ("Mice",)),
            ("Mice", "Wireless Mouse", ("Vertical", "Compact"), ()),
            ("Monitors", "Monitor", _INCHES, ("Monitor Arms",)),
            ("Monitor Arms", "Monitor Arm", _INCHES, ("Desk Lamps",)),
            ("Desk Lamps", "Desk Lamp", ("Clamp", "Base"), ()),
        ),
    ),
    "Kitchen": (
        "Hearth Provence Bistro Terra Copper Saffron Larder Rustica",
        "Pebblebrook Oakmoor Emberly Marrow&Finch Junipero Cinderfell Stonegate Tallgrass",
        (
            ("Saucepans", "Saucepan", _POTS, ("Lids",)),
            ("Lids", "Glass Lid", _POTS, ("Utensils",)),
            ("Frying Pans", "Frying Pan", _POTS, ("Lids", "Utensils")),
            ("Utensils", "Utensil Set", ("3-Piece", "5-Piece", "7-Piece"), ()),
            ("Knives", "Chef's Knife", ("16 cm", "20 cm", "24 cm"), ("Knife Sharpeners", "Cutting Boards")),
            ("Knife Sharpeners", "Whetstone", ("1000 grit", "3000 grit", "6000 grit"), ()),
            ("Cutting Boards", "Cutting Board", ("Oak", "Maple", "Bamboo"), ()),
        ),
    ),
    "Coffee": (
        "Crema Roma Torrefa Aroma Ritual Dawn Barista Arabica",
        "Cinderfell Junipero Pebblebrook Aldersea Copperline Ember&Ash Solvane Emberly",
        (
            ("Espresso Machines", "Espresso Machine", ("9 bar", "15 bar"), ("Coffee Grinders", "Milk Jugs")),
            ("Coffee Grinders", "Burr Grinder", ("40 mm", "54 mm", "64 mm"), ("Coffee Beans",)),
            ("Milk Jugs", "Milk Jug", ("350 ml", "600 ml"), ("Coffee Beans",)),
            ("Coffee Beans", "Coffee Beans", ("Light Roast", "Medium Roast", "Dark Roast"), ()),
            ("Pour-Over Sets", "Pour-Over Set", _CUPS, ("Paper Filters", "Gooseneck Kettles")),
            ("Paper Filters", "Paper Filters", _CUPS, ("Coffee Beans",)),
            ("Gooseneck Kettles", "Gooseneck Kettle", ("0.6 L", "0.9 L"), ()),
        ),
    ),
    "Garden": (
        "Meadow Orchard Bramble Fern Hedgerow Clover Willow Harvest",
        "Wrenfield Tallgrass Mossgate Harrow&Pine Pebblebrook Oakmoor Aldersea Ironquay",
        (
            ("Raised Beds", "Raised Bed", _BEDS, ("Bed Covers", "Potting Soil")),
            ("Bed Covers", "Bed Cover", _BEDS, ()),
            ("Potting Soil", "Potting Soil", ("20 L", "40 L", "60 L"), ("Seed Sets",)),
            ("Seed Sets", "Seed Set", ("Herb", "Salad", "Wildflower", "Tomato"), ("Watering Cans",)),
            ("Watering Cans", "Watering Can", ("5 L", "9 L"), ()),
            ("Secateurs", "Secateurs", ("Bypass", "Anvil"), ("Garden Gloves",)),
            ("Garden Gloves", "Garden Gloves", _WEAR, ()),
        ),
    ),
    "DIY": (
        "Forge Anvil Torque Girder Mason Joiner Titan Plumb",
        "Ironquay Stonegate Harrow&Pine Vantor Caldera Rivet&Rye Basalt&Birch Voltaro",
        (
            ("Cordless Drills", "Cordless Drill", _VOLTS, ("Drill Bits", "Batteries")),
            ("Drill Bits", "Drill Bit Set", ("Wood", "Metal", "Masonry"), ("Wall Plugs",)),
            ("Wall Plugs", "Wall Plug Box", ("6 mm", "8 mm", "10 mm"), ()),
            ("Batteries", "Tool Battery", _VOLTS, ()),
            ("Sanders", "Orbital Sander", _VOLTS, ("Sanding Discs", "Batteries")),
            ("Sanding Discs", "Sanding Discs", ("80 grit", "120 grit", "240 grit"), ()),
            ("Project Guides", "Workshop Guide, Part", (), ()),
        ),
    ),
    "Books": (
        "",
        "Lantern-House Greyfriar Saltmarsh Paper-Heron Ninth-Gate Quayside Old-Orchard Hollow-Oak",
        (
            ("Fantasy", ", Book", (), ()),
            ("Crime", ", Case", (), ()),
            ("Science Fiction", ", Volume", (), ()),
            ("Historical Novels", ", Book", (), ()),
            ("Manga", ", Vol.", (), ()),
            ("Notebooks", "Notebook", ("A6", "A5", "A4"), ("Pens",)),
            ("Pens", "Fountain Pen", ("Fine", "Medium", "Broad"), ()),
        ),
    ),
    "Games": (
        "Arcade Guild Meeple Rogue Tavern Pixel Crown Relic",
        "Ironmask Foxglove-Games Nine-Dice Starling Moonfield Tall-Tower Brass-Owl Wyrmwood-Lane",
        (
            ("Role-Playing Games", ", Part", (), ()),
            ("Strategy Games", ", Part", (), ()),
            ("Board Games", ": Expansion", (), ()),
            ("Controllers", "Wireless Controller", ("Black", "White", "Red"), ("Charging Docks",)),
            ("Charging Docks", "Charging Dock", ("Single", "Dual"), ()),
            ("Card Sleeves", "Card Sleeves", ("50-Pack", "100-Pack"), ("Dice Sets",)),
            ("Dice Sets", "Dice Set", ("7-Piece", "11-Piece"), ()),
        ),
    ),
}
# For notebooks and pens: novels have no lines.
_PAPER_LINES = "Ledger Quill Folio Vellum Margin Script Atlas Bindery"
_SHADES = "Slate Moss Sand Rust Navy Plum Chalk Ochre".split()
_FIRST = (
    "Amber Ashen Bitter Black Blind Broken Burning Cold Copper Crooked Distant Drowned Eastern Empty Fallen First "
    "Forgotten Frozen Gilded Glass Golden Green Grey Hidden Hollow Iron Ivory Last Little Lonely Long Lost Midnight "
    "Northern Pale Quiet Red Salt Scarlet Second Secret Seventh Shattered Silent Silver Sleeping Stone Summer Thorned "
    "Twin Unseen Velvet Wandering White Wild Winter"
).split()
_SECOND = (
    "Anchor Archive Bell Bridge Castle Choir Citadel City Coast Compass Court Crown Door Empire Engine Falcon Feather "
    "Field Fleet Forest Garden Gate Harbour Heir Horizon House Island Key Kingdom Lake Lantern Library Lighthouse Map "
    "Market Meridian Mirror Moon Mountain Oath Orchard Palace Passage Pilgrim Road River Sea Shore Sky Song Star Storm "
    "Street Throne Tide Tower Valley Village Well Wolf"
).split()
_GUIDES = "Joinery Tiling Plumbing Wiring Plastering Upholstery Woodturning Bricklaying Roofing Insulation".split()
_CONSUMABLES = {"Coffee Beans", "Paper Filters", "Potting Soil", "Seed Sets", "Sanding Discs", "Inner Tubes"}

# How shoppers behave; all are probabilities per purchase.
_P_SEQUEL = 0.55  # the next volume of the series begun last
_P_ACCESSORY = 0.42  # something that belongs to the purchase before
_P_NOISE = 0.06  # anything, by popularity
_P_STAY = 0.70  # stay in the department of the purchase before
_P_FAVOURITE = 0.65  # the favourite brand of the department
_P_DRIFT = 0.03  # one interest is replaced by a new one
_P_REPEAT = 0.03  # let a repeated purchase stand
_P_SECOND_OF_TYPE = 0.35  # let a second tent stand, say
_INTERESTS = np.array([0.60, 0.28, 0.12])


@dataclass(frozen=True)
class _Catalogue:
    """What the simulation needs of the items; arrays have one entry per item unless noted."""

    department: np.ndarray
    kind: np.ndarray  # product type
    brand: np.ndarray
    series: np.ndarray  # -1 for none
    first: np.ndarray  # the first volume of the item's series, or the item itself
    sequel: np.ndarray  # the next volume, -1 for none
    weight: np.ndarray  # popularity, > 0
    accessories: np.ndarray  # [n, 3] items in falling likelihood, -1 for none
    home: np.ndarray  # [departments, tiers] a brand of that tier
    durable: np.ndarray  # whether one of its type is usually enough
    n_brands: int


def make_demo_shop(n_items: int = 5000, n_users: int = 12000, seed: int = 0) -> Dataset:
    """Makes the shop: 12 departments, their items with titles, categories, brands and embeddings, and histories.

    Embeddings (float32 [n_items, 64], unit length) tell of an item what its text would: department, type, brand, line,
    variant, series. They and the rest of the catalogue are drawn before, and apart from, any shopper: the same
    `n_items` and `seed` give the same catalogue for any `n_users`. Histories have 5 to 60 items. Half of the purchases
    follow a text query; queries are drawn apart from everything else.

    Raises:
        ValueError: fewer than 100 items or no users.
    """
    if n_items < 100 or n_users < 1:
        raise ValueError(f"n_items is {n_items} and n_users {n_users}; use at least 100 items and 1 user")
    catalogue_seed, shoppers_seed, queries_seed = np.random.SeedSequence(seed).spawn(3)
    items, catalogue = _make_catalogue(n_items, np.random.default_rng(catalogue_seed))
    interactions = _simulate(catalogue, n_users, np.random.default_rng(shoppers_seed))
    queries = make_queries(items, interactions.rows, np.random.default_rng(queries_seed))
    return Dataset(items, replace(interactions, queries=pa.array(queries, pa.large_string())))


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue


def _make_catalogue(n: int, rng: np.random.Generator) -> tuple[ItemTable, _Catalogue]:
    departments = list(_DEPARTMENTS)
    brand_names = sorted({name for _, brands, _ in _DEPARTMENTS.values() for name in brands.split()})
    brand_index = {name: i for i, name in enumerate(brand_names)}
    tier = rng.integers(0, 3, len(brand_names))  # 0 budget, 1 middle, 2 premium
    types = [(d, t) for d, name in enumerate(departments) for t in _DEPARTMENTS[name][2]]

    # Series need more room for the same number of choices, since each is several items.
    shares = np.array([2.0 if not t[2] else 1.0 for _, t in types]) * rng.uniform(0.7, 1.3, len(types))
    counts = np.floor(shares / shares.sum() * n).astype(int)
    counts[np.argsort(-shares)[: n - counts.sum()]] += 1

    titles: list[str] = []
    columns: list[tuple[int, ...]] = []  # department, type, brand, line, variant, series, volume
    variants: dict[str, int] = {}
    lines: dict[str, int] = {}
    names = _SeriesNames(rng)
    for k, (d, kind) in enumerate(types):
        line_text, brand_text, _ = _DEPARTMENTS[departments[d]]
        brands = np.array([brand_index[name] for name in brand_text.split()])
        line_names = (line_text or _PAPER_LINES).split()
        if kind[2]:
            for choice in _distinct_choices((len(brands), len(line_names), len(kind[2])), int(counts[k]), rng):
                b, ln, v, copy = choice
                line_id = lines.setdefault(line_names[ln], len(lines))
                variant_id = variants.setdefault(kind[2][v], len(variants))
                brand = int(brands[b])
                name = f"{_spaced(brand_names[brand])} {line_names[ln]} {kind[2][v]} {kind[1]}"
                titles.append(_copied(_for_last(name, kind[2][v]), copy))
                columns.append((d, k, brand, line_id, variant_id, -1, 0))
        else:
            left = int(counts[k])
            while left:
                series, length = names.taken, min(left, int(rng.integers(3, 8)))
                brand, title = int(rng.choice(brands)), names.take(guide=departments[d] == "DIY")
                for volume in range(length):
                    titles.append(f"{title}{_volume(kind[1], volume)}")
                    variant_id = variants.setdefault(f"volume {volume + 1}", len(variants))
                    columns.append((d, k, brand, -1, variant_id, series, volume))
                left -= length

    # Rows are shuffled, so that a row number tells nothing about its item.
    order = rng.permutation(n)
    titles = [titles[i] for i in order.tolist()]
    department, kind_of, brand_of, line, variant, series_of, volume_of = np.array(columns, dtype=np.int64)[order].T

    first, sequel = _chains(series_of, volume_of)
    weight = _popularity(volume_of, brand_of, tier, rng)
    accessories = _accessories(types, kind_of, brand_of, line, variant, weight, rng)
    traits = ((department, 1.0), (kind_of, 0.8), (brand_of, 0.5), (line, 0.4), (variant, 0.4), (series_of, 0.6))
    embeddings = _embeddings(traits, rng)

    home = np.zeros((len(departments), 3), dtype=np.int64)
    for d, name in enumerate(departments):
        brands = np.array([brand_index[brand] for brand in _DEPARTMENTS[name][1].split()])
        for t in range(3):
            of_tier = brands[tier[brands] == t]
            home[d, t] = rng.choice(of_tier if of_tier.size else brands)
    kinds = [kind for _, kind in types]
    durable = np.array([bool(kind[2]) and kind[0] not in _CONSUMABLES for kind in kinds])[kind_of]

    serial = np.zeros(n, dtype=np.int64)
    for d in range(len(departments)):
        rows = np.flatnonzero(department == d)
        serial[rows] = np.arange(1, len(rows) + 1)
    table = ItemTable(
        item_ids=[
            f"{departments[d][:3].lower()}-{s:04d}" for d, s in zip(department.tolist(), serial.tolist(), strict=True)
        ],
        embeddings=embeddings,
        attributes={
            "title": titles,
            "category": [f"{departments[types[k][0]]} > {kinds[k][0]}" for k in kind_of.tolist()],
            "brand": [_spaced(brand_names[b]) for b in brand_of.tolist()],
        },
    )
    return table, _Catalogue(
        department=department,
        kind=kind_of,
        brand=brand_of,
        series=series_of,
        first=first,
        sequel=sequel,
        weight=weight,
        accessories=accessories,
        home=home,
        durable=durable,
        n_brands=len(brand_names),
    )


def _spaced(brand: str) -> str:
    return brand.replace("-", " ").replace("&", " & ")


def _for_last(title: str, variant: str) -> str:
    """Moves a variant such as "for Mira 5" behind the noun."""
    return f"{title.replace(f'{variant} ', '')} {variant}" if variant.startswith("for ") else title


def _distinct_choices(
    sizes: tuple[int, int, int], count: int, rng: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """`count` distinct (brand, line, variant, copy); copies beyond 0 only when all combinations are taken."""
    total = int(np.prod(sizes))
    copies, rest = divmod(count, total)
    flat = np.concatenate([np.arange(copies * total), copies * total + rng.permutation(total)[:rest]])
    brand, line, variant = np.unravel_index(flat % total, sizes)
    return list(zip(brand.tolist(), line.tolist(), variant.tolist(), (flat // total).tolist(), strict=True))


def _copied(title: str, copy: int) -> str:
    if copy == 0:
        return title
    edition, shade = divmod(copy - 1, len(_SHADES))
    return f"{title}, {_SHADES[shade]}" + (f" (Edition {edition + 1})" if edition else "")


def _volume(noun: str, volume: int) -> str:
    if noun == ": Expansion":
        return f"{noun} {volume}" if volume else ": The Board Game"
    return f"{noun} {volume + 1}" if noun.startswith(",") else f" {noun} {volume + 1}"


class _SeriesNames:
    """Hands out distinct names for series, such as "The Salt Road"."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._order = rng.permutation(len(_FIRST) * len(_SECOND)).tolist()
        self.taken = 0
        self._guides = 0

    def take(self, guide: bool) -> str:
        self.taken += 1
        if guide:
            self._guides += 1
            course, subject = divmod(self._guides - 1, len(_GUIDES))
            return f"{_GUIDES[subject]}{f' (Course {course + 1})' if course else ''}"
        cycle, place = divmod(self.taken - 1, len(self._order))
        a, b = divmod(self._order[place], len(_SECOND))
        return f"The {_FIRST[a]} {_SECOND[b]}{f' (Cycle {cycle + 1})' if cycle else ''}"


def _chains(series: np.ndarray, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first volume of the item's series or the item itself, next volume or -1), int64 [n] each."""
    n = len(series)
    first, sequel = np.arange(n), np.full(n, -1, dtype=np.int64)
    rows = np.lexsort((volume, series))
    rows = rows[series[rows] >= 0]
    if rows.size:
        same = series[rows[1:]] == series[rows[:-1]]
        sequel[rows[:-1][same]] = rows[1:][same]
        begin = np.flatnonzero(np.concatenate([[True], ~same]))
        first[rows] = np.repeat(rows[begin], np.diff(np.append(begin, len(rows))))
    return first, sequel


def _popularity(volume: np.ndarray, brand: np.ndarray, tier: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [n], Zipf-like: some brands sell better, and later volumes sell mostly to those who read on."""
    n = len(volume)
    brand_taste = rng.normal(0.0, 0.5, len(tier)) - 0.25 * tier
    score = rng.normal(0.0, 1.0, n) + brand_taste[brand] - 1.5 * (volume > 0)
    rank = np.empty(n)
    rank[np.argsort(-score)] = np.arange(n)
    return 1.0 / (rank + 0.01 * n)


def _accessories(
    types: Sequence[tuple[int, _Type]],
    kind: np.ndarray,
    brand: np.ndarray,
    line: np.ndarray,
    variant: np.ndarray,
    weight: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """int64 [n, 3]: what belongs to each item: of an accessory type, preferably of its brand, size and line."""
    place = {(d, t[0]): k for k, (d, t) in enumerate(types)}
    rows_of = [np.flatnonzero(kind == k) for k in range(len(types))]
    found = np.full((len(kind), 3), -1, dtype=np.int64)
    for k, (d, t) in enumerate(types):
        pool = np.concatenate([rows_of[place[d, name]] for name in t[3]]) if t[3] else np.empty(0, dtype=np.int64)
        if not pool.size:
            continue
        liking = 0.4 * np.log(weight[pool])
        for start in range(0, len(rows_of[k]), 512):
            rows = rows_of[k][start : start + 512]
            fit = liking + rng.gumbel(0.0, 0.3, (len(rows), len(pool)))
            for trait, strength in ((brand, 3.0), (variant, 2.0), (line, 1.0)):
                fit += strength * (trait[rows][:, None] == trait[pool][None, :])
            best = np.argsort(-fit, axis=1, kind="stable")[:, :3]
            found[rows, : best.shape[1]] = pool[best]
    return found


def _embeddings(traits: Sequence[tuple[np.ndarray, float]], rng: np.random.Generator) -> np.ndarray:
    """float32 [n, 64], unit length: a random direction for each value of each trait, plus noise for the rest.

    `traits` are (int64 [n], -1 for none; strength).
    """
    total = rng.normal(0.0, NOISE / np.sqrt(EMBEDDING_DIM), (len(traits[0][0]), EMBEDDING_DIM))
    for trait, strength in traits:
        directions = rng.normal(0.0, 1.0 / np.sqrt(EMBEDDING_DIM), (int(trait.max()) + 2, EMBEDDING_DIM))
        directions[-1] = 0.0  # trait -1: none
        total += strength * directions[trait]
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The shoppers


class _Shelves:
    """Draws items by popularity from the cells of a partition, for many shoppers at once."""

    def __init__(self, cell: np.ndarray, n_cells: int, weight: np.ndarray) -> None:
        self._rows = np.argsort(cell, kind="stable")
        self._edges = np.searchsorted(cell[self._rows], np.arange(n_cells + 1))
        self._cumulative = np.concatenate([[0.0], np.cumsum(weight[self._rows])])

    def draw(self, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [u]: an item of each cell, -1 where the cell is empty."""
        low, high = self._edges[cell], self._edges[cell + 1]
        point = self._cumulative[low] + rng.random(len(cell)) * (self._cumulative[high] - self._cumulative[low])
        place = np.searchsorted(self._cumulative, point, side="right") - 1
        return np.where(low < high, self._rows[np.clip(place, low, np.maximum(high - 1, low)) % len(self._rows)], -1)


class _Floor:
    """Where shoppers pick something when nothing in particular is due."""

    def __init__(self, shop: _Catalogue) -> None:
        self._first, self._n_brands = shop.first, shop.n_brands
        cells = len(shop.home) * shop.n_brands
        self._brands = _Shelves(shop.department * shop.n_brands + shop.brand, cells, shop.weight)
        self._departments = _Shelves(shop.department, len(shop.home), shop.weight)
        self._everything = _Shelves(np.zeros_like(shop.kind), 1, shop.weight)

    def pick(self, department: np.ndarray, favourite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [u]: an item for shoppers in these departments with these favourite brands (int64 [u] each)."""
        count = len(department)
        choice = self._brands.draw(department * self._n_brands + favourite, rng)
        plain = (choice < 0) | (rng.random(count) >= _P_FAVOURITE)
        choice[plain] = self._departments.draw(department[plain], rng)
        noise = (choice < 0) | (rng.random(count) < _P_NOISE)
        choice[noise] = self._everything.draw(np.zeros(int(noise.sum()), dtype=np.int64), rng)
        # Few begin a series in the middle.
        return np.where(rng.random(count) < 0.9, self._first[choice], choice)


def _simulate(shop: _Catalogue, n_users: int, rng: np.random.Generator) -> Interactions:
    """All shoppers take one step at a time, together."""
    floor, n_departments = _Floor(shop), len(shop.home)
    lengths = np.clip(np.rint(np.exp(rng.normal(np.log(13.0), 0.5, n_users))), MIN_LENGTH, MAX_LENGTH).astype(np.int64)
    # Longest first: the shoppers still at it are always a prefix.
    lengths = -np.sort(-lengths)
    size = np.bincount(shop.department, weights=shop.weight, minlength=n_departments)
    attraction = size**0.5 / (size**0.5).sum()
    related = rng.dirichlet(np.full(n_departments, 0.4), n_departments) * 0.8 + 0.2 * attraction
    interests = _three_interests(attraction, related, n_users, rng)
    tier = rng.integers(0, 3, n_users)
    favourite = shop.home[:, tier].T.copy()  # [users, departments]
    stray = rng.random(favourite.shape) < 0.25
    favourite[stray] = shop.home[np.nonzero(stray)[1], rng.integers(0, 3, int(stray.sum()))]

    bought = np.full((n_users, MAX_LENGTH), -1, dtype=np.int64)
    pending = np.full(n_users, -1, dtype=np.int64)
    here = interests[:, 0].copy()
    for step in range(int(lengths[0])):
        active = int(np.searchsorted(-lengths, -step, side="left"))
        users = np.arange(active)
        last = bought[users, step - 1] if step else np.full(active, -1, dtype=np.int64)

        drift = rng.random(active) < _P_DRIFT
        new = _categorical(related[interests[:active, 0]], rng)
        interests[users[drift], rng.integers(0, 3, active)[drift]] = new[drift]

        roll = rng.random(active)
        choice = np.full(active, -1, dtype=np.int64)
        follow = (pending[:active] >= 0) & (roll < _P_SEQUEL)
        choice[follow] = pending[:active][follow]
        belongs = shop.accessories[last, np.searchsorted([0.6, 0.85], rng.random(active))]
        owned = (bought[:active, :step] == belongs[:, None]).any(axis=1)
        accessory = ~follow & (step > 0) & (belongs >= 0) & ~owned & (rng.random(active) < _P_ACCESSORY)
        choice[accessory] = belongs[accessory]

        for attempt in range(4):
            open_ = np.flatnonzero(choice < 0)
            if not open_.size:
                break
            slot = np.searchsorted(np.cumsum(_INTERESTS)[:-1], rng.random(len(open_)))
            stay = rng.random(len(open_)) < _P_STAY
            department = np.where(stay, here[open_], interests[open_, slot])
            choice[open_] = floor.pick(department, favourite[open_, department], rng)
            if attempt < 3:  # otherwise the shopper takes it after all
                past = bought[open_, :step]
                repeated = (past == choice[open_][:, None]).any(axis=1)
                twice = (shop.kind[past] == shop.kind[choice[open_]][:, None]).any(axis=1) & shop.durable[choice[open_]]
                chance = rng.random(len(open_))
                choice[open_[(repeated & (chance > _P_REPEAT)) | (twice & (chance > _P_SECOND_OF_TYPE))]] = -1
        bought[users, step] = choice
        here[:active] = shop.department[choice]
        pending[:active] = np.where(shop.series[choice] >= 0, shop.sequel[choice], pending[:active])

    order = rng.permutation(n_users)
    offsets = np.zeros(n_users + 1, dtype=np.int64)
    np.cumsum(lengths[order], out=offsets[1:])
    taken = np.arange(MAX_LENGTH) < lengths[order][:, None]
    return Interactions(
        user_ids=[f"u{i:06d}" for i in range(n_users)], offsets=offsets, rows=bought[order][taken].astype(np.int32)
    )


def _categorical(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [u]: one draw per row of float [u, k]."""
    edges = np.cumsum(probabilities, axis=1)
    return (edges < rng.random(len(edges))[:, None] * edges[:, -1:]).sum(axis=1)


def _three_interests(attraction: np.ndarray, related: np.ndarray, n_users: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [users, 3]: a department by attraction, then two that go with it."""
    main = _categorical(np.broadcast_to(attraction, (n_users, len(attraction))), rng)
    return np.stack([main, _categorical(related[main], rng), _categorical(related[main], rng)], axis=1)
