"""Key sources: protectors whose secret a service or a device keeps; a folder for each service."""
