"""What a run came to, as text, tables and pictures: reads run folders and dataset folders, changes neither."""

import utils  # noqa: F401  (before torch)
