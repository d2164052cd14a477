"""A declared instance, and instances as Incus' API describes them."""

from typing import Any

from inx_sidecar.declared.declaration import DeclaredInstance

WEB = DeclaredInstance(
    "web", start=True, config={"boot.autostart": "true"}, devices={"data": {"type": "disk"}}
)


def present(declared: DeclaredInstance, **more: Any) -> dict[str, Any]:
    """The instance that Incus has after it created `declared`."""
    new = declared.creation_request()
    shown = {key: new[key] for key in ("name", "type", "description", "profiles", "ephemeral")}
    shown |= {"config": dict(new["config"]), "devices": dict(new["devices"])}
    shown |= {"project": declared.project, "architecture": "x86_64", "status": "Running", **more}
    return {"expanded_config": shown["config"], **shown}
