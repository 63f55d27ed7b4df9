"""Codes of findings: stable names that people search for and that CI may filter on.

Istio's own (`IST...`, from `istioctl analyze`) where the meaning is the same, else ours. A code never changes its
meaning; a new one goes to the end of its group.
"""

SCHEMA = "IST0106"
REFERENCE_NOT_FOUND = "IST0101"
CONFLICTING_HOSTS = "IST0109"
PORT_NEEDED = "IST0112"
SELECTOR_MATCHES_NOTHING = "IST0127"
UNREACHABLE_RULE = "IST0130"
INEFFECTIVE_MATCH = "IST0131"

UNREADABLE_FILE = "MESH0001"
INVALID_YAML = "MESH0002"
YAML_DUPLICATE_KEY = "MESH0003"
YAML_TOO_LARGE = "MESH0004"
UNKNOWN_KIND = "MESH0005"
KIND_NOT_SUPPORTED = "MESH0006"
DUPLICATE_RESOURCE = "MESH0007"
UNKNOWN_FIELD = "MESH0010"
DEPRECATED_FIELD = "MESH0011"
FIELD_NOT_SUPPORTED = "MESH0012"
EMPTY_FAULT = "MESH0013"
INVALID_REGEX = "MESH0014"
WEIGHTS = "MESH0015"
NO_EFFECT = "MESH0020"
PERMISSIVE_NEEDS_MESHLIB = "MESH0021"
AUDIT_HAS_NO_EFFECT = "MESH0022"
OTHER_NAMESPACE = "MESH0023"
AMBIGUOUS_NAME = "MESH0024"
SAME_ADDRESS = "MESH0025"
DUPLICATE_SUBSET = "MESH0026"
SEVERAL_POLICIES = "MESH0027"
MIXED_PROTOCOLS = "MESH0028"
FAILOVER_NEEDS_OUTLIERS = "MESH0029"
NEEDS_JWT = "MESH0030"
PROFILE_DROPS_FEATURE = "MESH0040"
NATIVE_UNKNOWN_FIELD = "MESH0050"
NATIVE_INVALID = "MESH0051"
NATIVE_TYPE = "MESH0052"
NATIVE_OVERRIDES = "MESH0053"

EXPLANATIONS: dict[str, str] = {
    REFERENCE_NOT_FOUND: "A route names a subset or host that nothing defines. Requests that take it fail with 503 "
    "(gRPC: UNAVAILABLE). An error when a DestinationRule for the host exists and lacks the subset, so that this is "
    "surely a slip; a warning when no DestinationRule for the host is there at all.",
    SCHEMA: "A field has the wrong type, is out of its range, is missing, or contradicts another one.",
    CONFLICTING_HOSTS: "Two VirtualServices are for the same host. The older one (by creationTimestamp, then name and "
    "namespace) applies and the other has no effect.",
    PORT_NEEDED: "A destination names a service of several ports, none of them the request's, and no port.",
    SELECTOR_MATCHES_NOTHING: "A selector matches no registered instance, so that the policy protects nothing.",
    UNREACHABLE_RULE: "An HTTP rule can never be reached, because an earlier one takes all of its requests. Its "
    "destinations, a canary's for example, get no traffic.",
    INEFFECTIVE_MATCH: "One match of an HTTP rule can never be reached, or is there twice; the rule's other matches work.",
    UNREADABLE_FILE: "A path does not exist or cannot be read.",
    INVALID_YAML: "The text is not YAML or JSON.",
    YAML_DUPLICATE_KEY: "A field is given twice in one object. YAML parsers keep either one, so neither is trusted.",
    YAML_TOO_LARGE: "A document is larger or deeper than any real one once its aliases are expanded.",
    UNKNOWN_KIND: "The document is of a kind that the server does not know, or says no kind.",
    KIND_NOT_SUPPORTED: "The kind is known, and this version does not translate it.",
    DUPLICATE_RESOURCE: "Two documents have the same kind, namespace and name.",
    UNKNOWN_FIELD: "The field does not exist. Lenient readers drop it silently; here it is an error.",
    DEPRECATED_FIELD: "The field is an old name of another one, or about to go.",
    FIELD_NOT_SUPPORTED: "The field is Istio's, and this version does not translate it. Nothing is ignored silently.",
    EMPTY_FAULT: "`fault` is there and has neither `delay` nor `abort`; Istio rejects the whole VirtualService.",
    INVALID_REGEX: "Not a regular expression in RE2's syntax, which xDS clients use.",
    WEIGHTS: "The weights of a route's destinations add up to nothing.",
    NO_EFFECT: "The document is accepted, and names settings that change nothing here.",
    PERMISSIVE_NEEDS_MESHLIB: "mTLS mode PERMISSIVE: gRPC's own xDS servers, and all servers while there is no CA, take plaintext only.",
    AUDIT_HAS_NO_EFFECT: "An AuthorizationPolicy with action AUDIT is accepted and logs nothing for now.",
    OTHER_NAMESPACE: "A DestinationRule outside the namespace of its host's service (and outside the root namespace) would "
    "be for clients of its own namespace only, and the server has one configuration for all namespaces.",
    AMBIGUOUS_NAME: "Services of several namespaces share a short name and none is in `default`.",
    SAME_ADDRESS: "Two instances have the same address and port.",
    DUPLICATE_SUBSET: "A subset of this name is already defined for the host; the first one applies.",
    SEVERAL_POLICIES: "Several PeerAuthentications are for the same workloads; the oldest, then the first by name, applies.",
    MIXED_PROTOCOLS: "Instances of one service and port disagree about their protocol.",
    FAILOVER_NEEDS_OUTLIERS: "`localityLbSetting` names where requests go when endpoints fall out, and the policy has no "
    "`outlierDetection` by which they would. The setting has no effect, as in Istio.",
    NEEDS_JWT: "The rule depends on a JWT, which servers do not validate yet. It is refused: dropped, it would let more "
    "in or keep more out than it says.",
    PROFILE_DROPS_FEATURE: "Clients of this profile cannot do what the field asks for; the message says what they do instead.",
    NATIVE_UNKNOWN_FIELD: "A native xDS resource has a field that its message type does not have.",
    NATIVE_INVALID: "A native xDS resource does not parse as its message type.",
    NATIVE_TYPE: "A native xDS resource is of a type that is not served from files.",
    NATIVE_OVERRIDES: "A native xDS resource has the name of a generated one and takes its place.",
}
