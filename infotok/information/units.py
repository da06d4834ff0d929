"""Information is computed in nats and reported in bits."""

import math

NATS_PER_BIT = math.log(2)
