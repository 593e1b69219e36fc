from rose_d2.data.datasets.clipart import (
    ALL_NAMES,
    CATEGORY_IDS,
    COLORABLE_GLYPHS,
    COLORS,
    HELD_OUT_NAMES,
    STUFF_NAMES,
    THING_BY_NAME,
    THING_NAMES,
    THINGS,
    coco_categories,
)


def test_there_are_enough_different_lower_case_names():
    assert len(THING_NAMES) >= 60
    assert len(STUFF_NAMES) == 8
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)
    assert all(name == name.lower().strip() for name in ALL_NAMES)


def test_no_two_things_look_the_same():
    looks = {(thing.glyph, thing.color) for thing in THINGS}
    assert len(looks) == len(THINGS)


def test_held_out_names_leave_every_object_and_color_for_training():
    held_out = [THING_BY_NAME[name] for name in HELD_OUT_NAMES]
    assert sorted(thing.object_name for thing in held_out) == sorted(COLORABLE_GLYPHS)
    seen = [
        thing for thing in THINGS if thing.color is not None and thing.name not in HELD_OUT_NAMES
    ]
    for color in COLORS:
        assert sum(thing.color == color for thing in seen) >= len(COLORABLE_GLYPHS) - 2


def test_ids_count_things_then_stuff_from_one():
    assert [CATEGORY_IDS[name] for name in ALL_NAMES] == list(range(1, len(ALL_NAMES) + 1))
    instances = coco_categories(with_stuff=False)
    panoptic = coco_categories(with_stuff=True)
    assert [c["name"] for c in instances] == list(THING_NAMES)
    assert [c["name"] for c in panoptic] == list(ALL_NAMES)
    assert [c["name"] for c in panoptic if not c["isthing"]] == list(STUFF_NAMES)
    red_car = next(c for c in instances if c["name"] == "red car")
    assert red_car["supercategory"] == "car"
