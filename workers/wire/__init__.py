"""Sockets, keys and message loops; imports no other room of workers."""
