"""What SID and RU share: the feature change that the paper allows, and the entropy of a Gaussian."""

import math
from typing import Literal

Method = Literal["linear", "optimized"]

ALPHA = 1.5e-4  # fraction of delta_f^2 by which features may move: the paper's, in all its experiments
GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)  # C, nats: entropy of a standard Gaussian
