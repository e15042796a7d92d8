"""The categories of YouTube-VIS, and which of them are classes of COCO."""

from collections.abc import Mapping, Sequence

_NAMES_2019 = (
    "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train horse"
    " turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant snowboard boat"
    " shark mouse frog eagle earless_seal tennis_racket"
)
_NAMES_2021 = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog giant_panda"
    " giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake snowboard"
    " squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
CATEGORIES: Mapping[int, Sequence[str]] = {2019: _NAMES_2019.split(), 2021: _NAMES_2021.split()}
"""The names of categories 1 to 40: the same id is another class in the other year."""

COCO_CLASSES: Mapping[int, Mapping[int, int]] = {
    2019: {
        **{1: 1, 2: 21, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20},
        **{24: 30, 25: 22, 36: 33, 41: 5, 42: 27, 43: 40, 74: 24},
    },
    2021: {
        **{1: 26, 2: 23, 3: 5, 4: 23, 5: 1, 7: 36, 8: 37, 9: 4, 16: 3, 17: 6, 18: 9, 19: 19, 21: 7, 22: 12, 23: 2},
        **{24: 40, 25: 18, 36: 31, 41: 29, 42: 33, 43: 34, 74: 24},
    },
}
"""COCO category id -> YouTube-VIS category id, as SeqFormer has it: with bicycles among the motorbikes and, in 2019,
the mice of computers among the foxes."""
