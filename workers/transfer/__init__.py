"""The transfer workers, and the engines through which rows travel; imports no other room of workers."""
