"""Four words that both sides of a joining read aloud, out of 256 short ones that do not sound alike.

Knows the list and how words come of keys. Does not know why they are compared. The list is part of the protocol: another order
of its words gives other words for the same keys.
"""

from __future__ import annotations

import hashlib

_TEXT = """\
acorn agent album amber anchor angel apple april armchair artist aspen atlas attic autumn avenue bakery balcony bamboo banana
bandit barbecue barrel bazaar beaver beetle bench biscuit bishop blanket blossom bonfire boomerang boulder bowling bridge bronze
brush buffalo butter cabin cactus camera canyon caravan carpet castle cedar celery cement chalk cherry chess chimney cinema
circle citrus clarinet clover cobalt cocoa coffee compass copper corridor cotton cousin cricket crystal cube curtain cushion
cyclone daisy decade delta denim desert diamond dinner doctor dolphin domino dragon drum eagle echo eclipse elephant elixir
emerald engine fabric family farmer feather fiddle fjord flamingo flute forest fossil fountain fox fudge galaxy garden garlic
gazelle geyser giraffe glacier globe gold gondola gospel grape guitar hamster harbor harvest hazel helmet horizon hornet
hospital iceberg igloo indigo insect island ivory jaguar jasmine jersey jigsaw joker jungle juniper kayak kernel ketchup kiosk
kitchen koala ladder lagoon lantern laptop lava lemon leopard library lilac lizard lobster lotus machine magnet magpie mango
mermaid mirror mitten monkey mosaic muffin museum napkin nectar nickel noodle nutmeg oasis ocean olive onion opera orbit orchid
osprey oxygen palace panda paper parrot peanut pebble pelican piano pigeon pillow pirate plastic poncho poppy prism pumpkin
puzzle pyramid quartz quilt rabbit radio rhubarb ribbon salmon sardine school scooter shampoo shelter silver siren sketch
soldier spider spinach spiral sponge stadium statue summit sunset swallow syrup tadpole teapot temple theatre thunder tibia
toast tomato tornado trumpet tulip tunnel turkey turtle umbrella unicorn utopia vacuum vampire vanilla vessel village violin
volcano walnut wedding whistle window yacht yogurt zebra
"""
WORDS = _TEXT.split()


def words(verify_key: str, site_key: str, serial: str) -> tuple[str, str, str, str]:
    """The words of this server's key, this site's key and this kit.

    They are slow to compute (scrypt), so that nobody between the two can try keys until one gives the words that are expected.
    """
    told = f"cafe-join\0{verify_key}\0{site_key}\0{serial}".encode()
    digest = hashlib.scrypt(told, salt=b"cafe-kit words", n=2**14, r=8, p=1, dklen=4)
    first, second, third, fourth = (WORDS[byte] for byte in digest)
    return first, second, third, fourth
