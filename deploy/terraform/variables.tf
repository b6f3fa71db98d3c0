# What can be chosen. Required: streams, package_key and package_sha256.

variable "region" {
  description = "The region that everything is in."
  type        = string
  default     = "eu-central-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is one of AWS' region names, as in eu-central-1."
  }
}

variable "name" {
  description = "What the names of all resources begin with: a-z, 0-9 and -, 2 to 20 characters."
  type        = string
  default     = "posts-pipeline"

  # Room is left for what is appended: a role's name has 64 characters, and the bucket's suffix is random.
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name is 2 to 20 characters of a-z, 0-9 and -, begins with a letter and does not end with -."
  }
}

# ---- The streams ----

variable "streams" {
  description = "The streams, by name, which is a stream's prefix in the bucket, its message group and the instance of its units: the https address that its importer polls, and more settings of either daemon, as `importer --help` and `transformer --help` explain them. DATABASE_SCHEMA is the name, with _ for -, unless transformer_settings says otherwise."
  type = map(object({
    source_url           = string
    importer_settings    = optional(map(string), {})
    transformer_settings = optional(map(string), {})
  }))
  nullable = false

  # The daemons of twenty streams fit into the memory of a t3.micro, and what they may do into the policy of a role.
  validation {
    condition     = length(var.streams) >= 1 && length(var.streams) <= 20
    error_message = "streams has 1 to 20 streams."
  }

  # The programs take 63 characters and an underscore; other names have less room. A letter comes first, since it names a schema.
  validation {
    condition     = alltrue([for stream in keys(var.streams) : can(regex("^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$", stream))])
    error_message = "streams has names of 1 to 30 characters of a-z, 0-9 and -, which begin with a letter and do not end with -."
  }

  validation {
    condition = alltrue([
      for stream in var.streams : can(regex("^https://[^/[:space:][:cntrl:]]+(/[^[:space:][:cntrl:]]*)?$", stream.source_url))
    ])
    error_message = "streams has a source_url that does not begin with https://, or has white space in it."
  }

  # systemd drops a value with any other control character.
  validation {
    condition = alltrue(flatten([
      for stream in var.streams : [
        for settings in [stream.importer_settings, stream.transformer_settings] : [
          for name, value in settings : can(regex("^[A-Z][A-Z0-9_]*$", name)) && can(regex("^[\\t\\n[:^cntrl:]]*$", value))
        ]
      ]
    ]))
    error_message = "streams has settings with names of A-Z, 0-9 and _, and values without control characters other than tab and newline."
  }

  validation {
    condition = length(setintersection(flatten([for stream in var.streams : keys(stream.importer_settings)]), [
      "STREAM", "SOURCE_URL", "ARCHIVE_BUCKET", "QUEUE_URL", "AWS_REGION", "SPOOL_DIR",
    ])) == 0
    error_message = "streams has importer_settings that set what Terraform or the unit already sets."
  }

  validation {
    condition = length(setintersection(flatten([for stream in var.streams : keys(stream.transformer_settings)]), [
      "STREAM", "ARCHIVE_BUCKET", "QUEUE_URL", "AWS_REGION", "DATABASE_URL", "DATABASE_URL_FILE", "DATABASE_AUTH",
      "ALLOW_PLAINTEXT",
    ])) == 0
    error_message = "streams has transformer_settings that set what Terraform or the unit already sets, or give up the database's certificate."
  }

  validation {
    condition = length(distinct([
      for name, stream in var.streams : lookup(stream.transformer_settings, "DATABASE_SCHEMA", replace(name, "-", "_"))
    ])) == length(var.streams)
    error_message = "streams has two streams with one DATABASE_SCHEMA."
  }

  # The daemons of a kind are on one host.
  validation {
    condition = alltrue([
      for settings in [[for stream in var.streams : stream.importer_settings], [for stream in var.streams : stream.transformer_settings]] : (
        length([for each in settings : each if contains(keys(each), "ADMIN_ADDR")])
        == length(distinct([for each in settings : reverse(split(":", each.ADMIN_ADDR))[0] if contains(keys(each), "ADMIN_ADDR")]))
      )
    ])
    error_message = "streams has two daemons on one host with the same port in ADMIN_ADDR."
  }
}

# ---- The hosts ----

variable "package_key" {
  description = "Where the .deb lies in the bucket, as in packages/posts-pipeline_1.0.0_amd64.deb."
  type        = string

  # The hosts may read below packages/ and nowhere else; other characters would have to be encoded before they are signed.
  validation {
    condition     = can(regex("^packages/[A-Za-z0-9._/-]+\\.deb$", var.package_key))
    error_message = "package_key begins with packages/, ends with .deb and has only letters, digits, dots, _, - and /."
  }
}

variable "package_sha256" {
  description = "What sha256sum says of the .deb; another one is not installed."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.package_sha256))
    error_message = "package_sha256 is 64 lower-case hexadecimal digits, as sha256sum prints them."
  }
}

variable "instance_type" {
  description = "Type of both hosts. Each daemon is held to 256 MB by its unit, and takes about 16 MB while the answers of its API are small."
  type        = string
  default     = "t3.micro"

  # Graviton's types have a g after the generation: m7g, t4g, c6gn.
  validation {
    condition     = can(regex("^[a-z0-9-]+\\.[a-z0-9]+$", var.instance_type)) && !can(regex("^[a-z]+[0-9]+g[a-z]*\\.", var.instance_type))
    error_message = "instance_type is an x86-64 type, as in t3.micro: the image and the package are for amd64."
  }
}

variable "ami_id" {
  description = "An Ubuntu image for hosts that are made from now on; null for the newest Ubuntu 24.04 LTS."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]+$", var.ami_id))
    error_message = "ami_id is an image's id, as in ami-0123456789abcdef0."
  }
}

# ---- The archive ----

variable "archive_cold_class" {
  description = "Storage class that objects of the archive move to. Only those that answer at once: the transformer reads any object at any time."
  type        = string
  default     = "GLACIER_IR"

  # Not ONEZONE_IA: the archive is the only copy of what the API said.
  validation {
    condition     = contains(["STANDARD_IA", "INTELLIGENT_TIERING", "GLACIER_IR"], var.archive_cold_class)
    error_message = "archive_cold_class is STANDARD_IA, INTELLIGENT_TIERING or GLACIER_IR: from other classes an object is read hours later, or is lost with one zone."
  }
}

variable "archive_cold_after_days" {
  description = "Age in days at which they move, from 30; null for never. S3 leaves objects below 128 KiB where they are."
  type        = number
  default     = 90

  validation {
    condition     = var.archive_cold_after_days == null || try(var.archive_cold_after_days >= 30 && floor(var.archive_cold_after_days) == var.archive_cold_after_days, false)
    error_message = "archive_cold_after_days is a whole number from 30, or null for never."
  }
}

variable "noncurrent_expire_after_days" {
  description = "Days after which what was deleted or overwritten by hand is gone for good, from 30; null for never."
  type        = number
  default     = null

  validation {
    condition     = var.noncurrent_expire_after_days == null || try(var.noncurrent_expire_after_days >= 30 && floor(var.noncurrent_expire_after_days) == var.noncurrent_expire_after_days, false)
    error_message = "noncurrent_expire_after_days is a whole number from 30, so that there is time to notice, or null for never."
  }
}

# ---- The database ----

variable "database_class" {
  description = "Class of the database's instance."
  type        = string
  default     = "db.t4g.micro"

  validation {
    condition     = can(regex("^db\\.[a-z0-9]+\\.[a-z0-9]+$", var.database_class))
    error_message = "database_class is a class of RDS, as in db.t4g.micro."
  }
}

variable "database_version" {
  description = "Major version of Postgres. RDS chooses and upgrades the minor one."
  type        = string
  default     = "17"

  # The oldest release that the transformer is tested on.
  validation {
    condition     = can(regex("^(1[5-9]|[2-9][0-9])$", var.database_version))
    error_message = "database_version is a major version of Postgres from 15, as in 17."
  }
}

variable "database_storage_gib" {
  description = "The database's disk in GiB, from 20. RDS lets it grow by itself to five times this."
  type        = number
  default     = 20

  validation {
    condition     = var.database_storage_gib >= 20 && var.database_storage_gib <= 10000 && floor(var.database_storage_gib) == var.database_storage_gib
    error_message = "database_storage_gib is a whole number from 20 to 10000."
  }
}

variable "database_multi_az" {
  description = "Whether a second zone holds a synchronous copy of the database that takes over."
  type        = bool
  default     = false
}

variable "database_backup_days" {
  description = "How long the database's backups are kept, 1 to 35 days."
  type        = number
  default     = 7

  # 0 would turn them off.
  validation {
    condition     = var.database_backup_days >= 1 && var.database_backup_days <= 35 && floor(var.database_backup_days) == var.database_backup_days
    error_message = "database_backup_days is a whole number from 1 to 35."
  }
}

variable "deletion_protection" {
  description = "Whether the database and a bucket that is not empty refuse to be destroyed. To be changed and applied before a destroy."
  type        = bool
  default     = true
}

variable "database_role" {
  description = "The role that the transformer connects as, made by `transformer migrate --grant-to`."
  type        = string
  default     = "transformer"

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_]{0,62}$", var.database_role)) && !contains(["postgres", "rdsadmin", "posts_admin"], var.database_role)
    error_message = "database_role is 1 to 63 characters of a-z, 0-9 and _, begins with a letter or _, and is none of the administrators."
  }
}

# ---- The alarms ----

variable "alarm_email" {
  description = "Who is written to when an alarm goes off, after confirming a first mail; null for nobody."
  type        = string
  default     = null

  validation {
    condition     = var.alarm_email == null || can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", var.alarm_email))
    error_message = "alarm_email is an address, as in on-call@example.org."
  }
}

variable "queue_age_alarm_secs" {
  description = "How old a message may grow before somebody is told that nothing is loaded."
  type        = number
  default     = 900

  validation {
    condition     = var.queue_age_alarm_secs >= 60 && var.queue_age_alarm_secs <= 86400
    error_message = "queue_age_alarm_secs is from 60 to 86400."
  }
}

# ---- The network ----

variable "network" {
  description = "The VPC's addresses: a private IPv4 network of /16 to /24."
  type        = string
  default     = "10.40.0.0/20"

  validation {
    condition     = can(cidrnetmask(var.network)) && can(regex("/(1[6-9]|2[0-4])$", var.network))
    error_message = "network is an IPv4 network of /16 to /24, as in 10.40.0.0/20."
  }
}
