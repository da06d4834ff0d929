"""Networks that examine images: the judge, the matching judge and the perceptual features."""
