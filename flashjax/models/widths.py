"""A model at another width, for parametrizations that compare widths."""


def at_ratio(name: str, value: int, width: int, own_width: int) -> int:
    """`value`, a count that grows with the width, in a model of `width` in place of `own_width`.

    Raises ValueError where it is no whole number.
    """
    scaled, rest = divmod(value * width, own_width)
    if rest or scaled < 1:
        raise ValueError(
            f"at width {width} in place of {own_width}, {name} {value} would be {value * width / own_width:g}: choose "
            "another base width, or change what a narrower model keeps (parametrization.keep)"
        )
    return scaled
