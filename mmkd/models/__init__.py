from .backbones import *  # noqa: F403
from .connectors import *  # noqa: F403
from .distillers import *  # noqa: F403
from .losses import *  # noqa: F403
from .methods import *  # noqa: F403
from .proxies import *  # noqa: F403
