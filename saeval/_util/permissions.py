"""Checks which environment variables a spec may use, and to which hosts a provider's key may be sent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from saeval._util.errors import InputError
from saeval._util.secrets import register_secret

ALLOW_ENV, ALLOW_HOST = "SAEVAL_ALLOW_ENV", "SAEVAL_ALLOW_HOST"
"""Environment variables with the user's permissions, comma-separated, so that worker processes inherit them."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FREE = re.compile(r"[A-Z0-9_]*_API_KEY")


class Provider(NamedTuple):
    """A service whose key variables are known.

    Attributes:
        variables: Environment variables that contain its key.
        hosts: Patterns of its hosts (`*` matches anything); empty if the service has no language models.
    """

    variables: tuple[str, ...]
    hosts: tuple[str, ...] = ()


_AZURE = ("*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com", "*.inference.ai.azure.com")
_OTHERS = (
    "COMET_API_KEY", "DATADOG_API_KEY", "DD_API_KEY", "ELEVENLABS_API_KEY", "LANGCHAIN_API_KEY", "LANGFUSE_API_KEY",
    "LANGSMITH_API_KEY",
    "MAILGUN_API_KEY", "NEPTUNE_API_KEY", "NGC_API_KEY", "PINECONE_API_KEY", "PYPI_API_KEY", "SENDGRID_API_KEY",
    "SERPAPI_API_KEY", "STRIPE_API_KEY",
    "TAVILY_API_KEY", "TWILIO_API_KEY",
)  # fmt: skip
PROVIDERS: dict[str, Provider] = {
    "openai": Provider(("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"), ("api.openai.com", "*.api.openai.com", *_AZURE)),
    "anthropic": Provider(("ANTHROPIC_API_KEY",), ("api.anthropic.com",)),
    "gemini": Provider(("GEMINI_API_KEY", "GOOGLE_API_KEY", "PALM_API_KEY"), ("generativelanguage.googleapis.com",)),
    "vertex_ai": Provider(("VERTEX_API_KEY", "VERTEXAI_API_KEY"),
    ("aiplatform.googleapis.com", "*-aiplatform.googleapis.com")),
    "azure": Provider(("AZURE_API_KEY",), _AZURE), "azure_ai": Provider(("AZURE_AI_API_KEY",), _AZURE),
    "bedrock": Provider(("BEDROCK_API_KEY",), ("bedrock-runtime.??-*-?.amazonaws.com",)),
    "mistral": Provider(("MISTRAL_API_KEY",), ("api.mistral.ai",)),
    "codestral": Provider(("CODESTRAL_API_KEY",), ("codestral.mistral.ai",)),
    "cohere": Provider(("COHERE_API_KEY", "CO_API_KEY"), ("api.cohere.com", "api.cohere.ai")),
    "groq": Provider(("GROQ_API_KEY",), ("api.groq.com",)),
    "openrouter": Provider(("OPENROUTER_API_KEY", "OR_API_KEY"), ("openrouter.ai",)),
    "together_ai": Provider(("TOGETHERAI_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_API_KEY"),
    ("api.together.xyz", "api.together.ai")),
    "deepseek": Provider(("DEEPSEEK_API_KEY",), ("api.deepseek.com",)),
    "fireworks_ai": Provider(("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"), ("api.fireworks.ai",)),
    "xai": Provider(("XAI_API_KEY",), ("api.x.ai",)),
    "perplexity": Provider(("PERPLEXITY_API_KEY", "PERPLEXITYAI_API_KEY"), ("api.perplexity.ai",)),
    "replicate": Provider(("REPLICATE_API_KEY",), ("api.replicate.com",)),
    "huggingface": Provider(("HUGGINGFACE_API_KEY", "HF_API_KEY"),
    ("huggingface.co", "router.huggingface.co", "api-inference.huggingface.co")),
    "nvidia_nim": Provider(("NVIDIA_NIM_API_KEY", "NVIDIA_API_KEY"), ("integrate.api.nvidia.com",)),
    "cerebras": Provider(("CEREBRAS_API_KEY",), ("api.cerebras.ai",)),
    "sambanova": Provider(("SAMBANOVA_API_KEY",), ("api.sambanova.ai",)),
    "dashscope": Provider(("DASHSCOPE_API_KEY",), ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com")),
    "moonshot": Provider(("MOONSHOT_API_KEY",), ("api.moonshot.ai", "api.moonshot.cn")),
    "deepinfra": Provider(("DEEPINFRA_API_KEY",), ("api.deepinfra.com",)),
    "novita": Provider(("NOVITA_API_KEY",), ("api.novita.ai",)),
    "hyperbolic": Provider(("HYPERBOLIC_API_KEY",), ("api.hyperbolic.xyz",)),
    "nebius": Provider(("NEBIUS_API_KEY",), ("*.nebius.com", "*.nebius.ai")),
    "lambda_ai": Provider(("LAMBDA_API_KEY",), ("api.lambda.ai", "api.lambdalabs.com")),
    "ai21": Provider(("AI21_API_KEY",), ("api.ai21.com",)),
    "volcengine": Provider(("VOLCENGINE_API_KEY", "ARK_API_KEY"), ("ark.cn-beijing.volces.com",)),
    "minimax": Provider(("MINIMAX_API_KEY",), ("api.minimax.io", "api.minimax.chat")),
    "zai": Provider(("ZAI_API_KEY", "ZHIPUAI_API_KEY"), ("api.z.ai", "open.bigmodel.cn")),
    "github": Provider(("GITHUB_API_KEY",), ("models.inference.ai.azure.com", "models.github.ai")),
    "databricks": Provider(("DATABRICKS_API_KEY",)),
    "watsonx": Provider(("WATSONX_API_KEY", "WX_API_KEY"), ("*.ml.cloud.ibm.com",)),
    "wandb": Provider(("WANDB_API_KEY",), ("api.inference.wandb.ai",)),
    "cloudflare": Provider(("CLOUDFLARE_API_KEY",), ("api.cloudflare.com",)),
    "poe": Provider(("POE_API_KEY",), ("api.poe.com",)),
    "vercel_ai_gateway": Provider(("VERCEL_AI_GATEWAY_API_KEY",), ("ai-gateway.vercel.sh",)),
    "other services": Provider(_OTHERS),
}  # fmt: skip
"""Providers by litellm's name."""

_BY_VARIABLE = {variable: name for name, provider in PROVIDERS.items() for variable in provider.variables}


def allow(*, variables: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
    """Allow specs to use these variables, and to send keys to these hosts, in this process and its children."""
    for place, more in ((ALLOW_ENV, variables), (ALLOW_HOST, hosts)):
        if names := [*_allowed(place), *more]:
            os.environ[place] = ",".join(dict.fromkeys(names))


def granted() -> dict[str, str]:
    """Return the user's permissions as environment variables for another process."""
    return {place: os.environ[place] for place in (ALLOW_ENV, ALLOW_HOST) if place in os.environ}


def check_variable(name: str) -> None:
    """Check that a spec may use this environment variable as an API key.

    Raises:
        InputError: If its name does not end in `_API_KEY`, and the user has not allowed it.
    """
    if not _VARIABLE.fullmatch(name):
        raise InputError("api_key_env should be the name of an environment variable, such as MY_LAB_API_KEY")
    if not (_FREE.fullmatch(name) or name in _allowed(ALLOW_ENV)):
        raise InputError(
            f"{name}: a spec may use only variables that end in _API_KEY, because it could send any other secret to "
            f"its server; if this is intended, allow it with --allow-env {name}"
        )


def check_receiver(provider: str, address: str) -> None:
    """Check that a provider's key may be sent to an address.

    Raises:
        InputError: If the host is neither the provider's nor this machine, and the user has not allowed it.
    """
    host, secure = _host(address)
    hosts = PROVIDERS[provider].hosts if provider in PROVIDERS else ()
    if _loopback(host) or host in _allowed(ALLOW_HOST):
        return
    if not any(fnmatchcase(host, pattern) for pattern in hosts):
        whose = (
            f"the key for {provider}" if provider in PROVIDERS else f"a key for {provider}, which saeval does not know,"
        )
        raise InputError(f"{whose} would be sent to {host}; if this is intended, allow it with --allow-host {host}")
    if not secure:
        raise InputError(f"the key for {provider} would be sent to {host} without encryption; use https://")


def check_address(address: str) -> None:
    """Check that all libraries parse an address in the same way: no user name, no spaces, no backslash.

    Raises:
        InputError: If not.
    """
    _host(address)


def credential(variable: str, address: str) -> str | None:
    """Return the key in an environment variable of a spec, after checking that it may be sent to the spec's address.

    Registers the value as a secret, so that it is removed from all output.

    Raises:
        InputError: If the spec may not use the variable, or the key may not be sent to the address.
    """
    check_variable(variable)
    value = os.environ.get(variable)
    if not value:
        return None
    if variable in _BY_VARIABLE:
        check_receiver(_BY_VARIABLE[variable], address)
    return register_secret(value)


def _allowed(place: str) -> Iterator[str]:
    for name in os.environ.get(place, "").split(","):
        if name.strip():
            yield name.strip().lower() if place == ALLOW_HOST else name.strip()


def _host(address: str) -> tuple[str, bool]:
    """Return the host of an address, and whether the connection is encrypted.

    Raises:
        InputError: If it is not a plain address, since libraries may parse it differently.
    """
    plain = re.fullmatch(r"(https?)://[^\s\\@/?#\x00-\x1f\x7f]+(?:[/?#][^\s\\\x00-\x1f\x7f]*)?", address, re.IGNORECASE)
    try:
        host = urlsplit(address).hostname if plain else None
    except ValueError:
        host = None
    if plain is None or not host:
        raise InputError(
            "the address of a server should have the form https://HOST/v1, without user name, password or spaces"
        )
    return host.lower().rstrip("."), plain[1].lower() == "https"


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
