"""A made-up shop to try the stack on: a catalogue with readable titles and shoppers whose histories can be learnt.

What there is to learn, roughly from easy to hard: accessories follow the thing that they belong to (a tent, then the
footprint of its brand and size); volumes of a series are bought in order, also after a detour; shoppers stay in a
department for a while, come back to a few departments, and keep to brands of their price tier; interests drift slowly.
Popularity has a long tail, and some purchases are noise. All names are invented.
"""

from genrec_builders.data.demo_shop.shop import make_demo_shop

__all__ = ["make_demo_shop"]
