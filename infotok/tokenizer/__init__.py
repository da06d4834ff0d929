"""The shared visual tokenizer: patches to a few tokens, tokens back to pixels."""

from infotok.errors import InfotokError


def patch_grid(image_size: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of the grid of patches that gives one token each.

    The factor pair of `tokens` nearest to a square, rows <= columns, both dividing `image_size`.

    Raises:
        InfotokError: no such pair exists; the message lists the budgets that the image size allows.
    """
    divisors = [d for d in range(1, image_size // 2 + 1) if image_size % d == 0]
    pairs = [(rows, columns) for rows in divisors for columns in divisors if rows <= columns <= 4 * rows]
    fitting = [pair for pair in pairs if pair[0] * pair[1] == tokens]
    if not fitting:
        budgets = sorted({rows * columns for rows, columns in pairs if rows * columns <= 256})
        raise InfotokError(
            f"a {image_size} x {image_size} image cannot be cut into {tokens} equal patches; "
            f"possible token budgets: {', '.join(map(str, budgets))}"
        )
    return max(fitting)


MAP = 8  # places a side of the map that the convolutional encoder cuts into tokens


def halvings(image_size: int, grid: tuple[int, int]) -> int:
    """How often the convolutional encoder halves an image on its way to the map.

    Raises:
        InfotokError: that does not come out even, or the grid does not divide the map.
    """
    count = (image_size // MAP).bit_length() - 1
    if image_size != MAP << count or count < 1 or MAP % grid[0] or MAP % grid[1]:
        raise InfotokError(
            "tokenizer.encoder 'convolution' needs 16, 32, 64, … pixels a side and 1, 2, 4, … or 64 tokens, "
            f"not {image_size} and {grid[0] * grid[1]}; set tokenizer.encoder to patch"
        )
    return count


def smaller_budgets(tokens: int) -> list[int]:
    """The budgets below `tokens` at which an elastic tokenizer is evaluated: powers of two."""
    return [2**power for power in range(tokens.bit_length()) if 2**power < tokens]
