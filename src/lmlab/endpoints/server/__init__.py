"""Our own models by the OpenAI protocol."""

from lmlab.endpoints.server.app import ServerConfig, create_app
from lmlab.endpoints.server.run import background, serve, server_config

__all__ = ["ServerConfig", "background", "create_app", "serve", "server_config"]
