"""Four words that both sides of a joining read aloud, out of 256 short ones that do not sound alike.

Knows the list and how words come of keys. Does not know why they are compared. The list is part of the protocol: another order
of its words gives other words for the same keys.
"""

from __future__ import annotations

import hashlib

_TEXT = """\
acorn agent album amber anchor angel apple april arrow artist aspen atlas attic autumn avenue bacon bakery ballet balloon bamboo
banana barrel basil basket beaver bench biscuit bishop blossom bonus border bottle boulder bridge bronze brush bucket buffalo
butter cabin cactus camera canyon caravan carpet castle cedar cello cement chalk cherry chess chimney cinema circle citrus
clarinet clover cobalt cocoa coffee comet copper coral cotton cousin cricket crystal cube curtain cushion cyclone daisy decade
delta denim desert diamond dinner doctor dolphin domino dragon drum eagle echo eclipse elbow elephant emerald engine fabric falcon
family farmer feather fiddle finger flamingo flute forest fossil fountain fox galaxy garden garlic gazelle geyser giraffe glacier
globe goblet gold gospel grape guitar hammer harbor harvest hazel helmet honey horizon hotel iceberg igloo indigo insect island
ivory jacket jaguar jasmine jersey jigsaw jungle juniper kayak kernel kettle kiosk kitchen koala ladder lagoon lantern laptop lava
lemon leopard library lilac lizard lobster lotus machine magnet mango maple meadow mirror mitten monkey mosaic muffin museum
napkin nectar nickel noodle nutmeg oasis ocean olive onion opera orbit orchid otter oyster palace panda paper parrot peanut pebble
piano pigeon pillow pirate planet pocket pony potato prism pumpkin puzzle pyramid quartz quilt rabbit radio ribbon river saddle
satin school scooter shadow shelter silver siren sketch soldier spider spinach spiral sponge stadium statue summer sunset swallow
syrup tablet teapot temple theatre thunder tiger timber toast tomato tornado trumpet tulip tunnel turtle umbrella uncle unicorn
valley vanilla velvet vessel village violin volcano walnut wedding whistle window yellow yogurt zebra
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
