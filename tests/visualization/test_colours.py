from rose_d2.visualization.visualizer import colour_of


def test_a_name_has_one_colour_and_other_names_others():
    assert colour_of("red car") == colour_of("Red  Car ")
    colours = {colour_of(name) for name in ("dog", "cat", "grass", "sky", "red car", "wall")}
    assert len(colours) >= 5
    assert all(0 <= channel <= 1 for colour in colours for channel in colour)
