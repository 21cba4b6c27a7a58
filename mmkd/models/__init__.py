from .backbones import *  # noqa: F401,F403
from .connectors import *  # noqa: F401,F403
from .distillers import *  # noqa: F401,F403
from .losses import *  # noqa: F401,F403
from .methods import *  # noqa: F401,F403
from .proxies import *  # noqa: F401,F403
