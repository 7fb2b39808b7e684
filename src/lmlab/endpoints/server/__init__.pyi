from .app import ServerConfig, create_app
from .run import background, bind, serve, server_config

__all__ = ["ServerConfig", "background", "bind", "create_app", "serve", "server_config"]
