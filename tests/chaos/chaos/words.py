"""What the words of memory tell: who wrote them, for which cache, which generation, and where."""

import numpy as np

POISON = np.uint64(2**64 - 1)
PUSHED = 15  # in the place of a name: written by a pusher, and the generation is its version

_SLOT, _NAME, _GENERATION, _TENSOR, _UNIT = 60, 56, 32, 28, 16
_MASK_24 = (1 << 24) - 1


def tag(slot, name, generation):
    """The part that is the same in every word of one generation of a cache."""
    bits = (slot + 1) << _SLOT | name << _NAME | (generation & _MASK_24) << _GENERATION
    return np.uint64(bits)


def places(tensors, units, words):
    """The part that differs everywhere within a cache: [tensor, unit, word]."""
    tensor = np.arange(tensors, dtype=np.uint64)[:, None, None] << np.uint64(_TENSOR)
    unit = np.arange(units, dtype=np.uint64)[None, :, None] << np.uint64(_UNIT)
    return tensor + unit + np.arange(words, dtype=np.uint64)[None, None, :]


def told(word):
    """Read (slot, name, generation, tensor, unit, word) from a word."""
    number = int(word)
    return (
        (number >> _SLOT) - 1,
        number >> _NAME & 15,
        number >> _GENERATION & _MASK_24,
        number >> _TENSOR & 15,
        number >> _UNIT & 0xFFF,
        number & 0xFFFF,
    )


def tags_of(data, expected_places):
    """The distinct tags of memory whose places are as expected; None where any is not.

    Args:
        data: Words as they were found.
        expected_places: `places` of the words that should be there, of the same shape.
    """
    first = data.flat[0] - expected_places.flat[0]
    bases = data - expected_places
    if (bases == first).all():
        return [int(first)]
    found = np.unique(bases)
    low = np.uint64((1 << _GENERATION) - 1)
    return None if (found & low).any() or len(found) > 64 else [int(each) for each in found]
