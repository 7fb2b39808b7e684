"""Our own models by the OpenAI protocol."""

from lmlab.endpoints.served import ServedModel
from lmlab.endpoints.server.app import ServerConfig, create_app
from lmlab.endpoints.server.run import background, bind, serve, server_config

__all__ = ["ServedModel", "ServerConfig", "background", "bind", "create_app", "serve", "server_config"]
