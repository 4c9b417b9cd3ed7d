"""A run's configuration: the schema, how it is loaded and checked, its hash and its folder."""

from npas.config.hashing import HASH_EXCLUDED as HASH_EXCLUDED
from npas.config.hashing import OF_PARTS as OF_PARTS
from npas.config.hashing import config_hash as config_hash
from npas.config.hashing import in_parts as in_parts
from npas.config.hashing import is_excluded as is_excluded
from npas.config.hashing import run_dir as run_dir
from npas.config.hashing import to_dict as to_dict
from npas.config.load import ignored as ignored
from npas.config.load import known_keys as known_keys
from npas.config.load import load_config as load_config
from npas.config.load import search_epochs as search_epochs
from npas.config.schema import DENSE as DENSE
from npas.config.schema import GROUPINGS as GROUPINGS
from npas.config.schema import NO_PACKAGE as NO_PACKAGE
from npas.config.schema import RECIPE_VERSION as RECIPE_VERSION
from npas.config.schema import SEARCHED as SEARCHED
from npas.config.schema import SYNTHETIC as SYNTHETIC
from npas.config.schema import Config as Config
from npas.config.schema import DataConfig as DataConfig
from npas.config.schema import OptimConfig as OptimConfig
from npas.config.schema import SearchConfig as SearchConfig
from npas.config.schema import SharingConfig as SharingConfig
from npas.config.schema import SyntheticConfig as SyntheticConfig
from npas.config.schema import TrainerConfig as TrainerConfig
from npas.config.schema import WandbConfig as WandbConfig
from npas.config.schema import canonical_budget as canonical_budget
