"""The JSON that goes over the wire, as pydantic models that the routes and the Python client share."""
