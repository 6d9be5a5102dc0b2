"""The table in which `--method` looks a baseline up."""

from baselines.data import Baseline
from baselines.itemknn import ItemKNN
from baselines.popular import Popular
from baselines.sasrec import SASRec

METHODS: dict[str, type[Baseline]] = {"popular": Popular, "itemknn": ItemKNN, "sasrec": SASRec}
