# What is made with the default settings, on a mocked provider.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  streams        = { posts = { source_url = "https://jsonplaceholder.typicode.com/posts" } }
  package_key    = "packages/posts-pipeline_1.0.0_amd64.deb"
  package_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
}

run "everything" {
  # ---- Outputs ----

  assert {
    condition     = output.transformer_environment.posts.DATABASE_URL == "postgres://transformer@posts-pipeline.abc.eu-central-1.rds.amazonaws.com:5432/posts?sslmode=verify-full&sslrootcert=/etc/ssl/certs/rds-global-bundle.pem"
    error_message = "The transformer checks the database's certificate and has no password."
  }

  assert {
    condition     = output.database_admin_url == replace(output.transformer_environment.posts.DATABASE_URL, "transformer@", "posts_admin@")
    error_message = "Migrations take the same way under another name."
  }

  # ---- Network ----

  assert {
    condition     = length(aws_vpc_security_group_egress_rule.out) == 4
    error_message = "HTTP and HTTPS are the only ways out."
  }

  # ---- Archive ----

  assert {
    condition = anytrue([
      for statement in jsondecode(aws_s3_bucket_policy.archive.policy).Statement :
      statement.Effect == "Deny" && statement.Principal == "*" && statement.Action == "s3:PutObject"
      && statement.Resource == "${aws_s3_bucket.archive.arn}/raw/*"
      && statement.Condition == { Null = { "s3:if-none-match" = "true" } }
    ])
    error_message = "A PUT below raw/ without If-None-Match is refused, whoever sends it."
  }

  assert {
    condition = anytrue([
      for statement in jsondecode(aws_s3_bucket_policy.archive.policy).Statement :
      statement.Effect == "Deny" && statement.Action == "s3:*" && statement.Condition == { Bool = { "aws:SecureTransport" = "false" } }
    ])
    error_message = "The bucket is reached by TLS only."
  }

  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.archive.rule :
      length(rule.expiration) == 0 && alltrue([for transition in rule.transition : transition.storage_class == "GLACIER_IR"])
    ])
    error_message = "Current objects never expire, and move only to where they can be read at once."
  }

  assert {
    condition     = length([for rule in aws_s3_bucket_lifecycle_configuration.archive.rule : rule if length(rule.noncurrent_version_expiration) > 0]) == 0
    error_message = "What was deleted by hand stays, unless a variable says otherwise."
  }

  assert {
    condition     = aws_s3_bucket_versioning.archive.versioning_configuration[0].status == "Enabled" && !aws_s3_bucket.archive.force_destroy
    error_message = "The bucket is versioned, and is not destroyed with objects in it."
  }

  # ---- Queue ----

  assert {
    condition     = alltrue([for queue in aws_sqs_queue.bell : queue.fifo_queue && endswith(queue.name, ".fifo") && queue.sqs_managed_sse_enabled])
    error_message = "The queue is FIFO and encrypted."
  }

  assert {
    condition = alltrue([
      for stream, queue in aws_sqs_queue.bell :
      one(jsondecode(queue.policy).Statement) == {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = "arn:aws:sqs:eu-central-1:123456789012:${queue.name}"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }
    ])
    error_message = "The queue is reached by TLS only."
  }

  # ---- Database ----

  assert {
    condition = (
      aws_db_instance.main.storage_encrypted && aws_db_instance.main.iam_database_authentication_enabled
      && aws_db_instance.main.deletion_protection && !aws_db_instance.main.skip_final_snapshot
      && !aws_db_instance.main.publicly_accessible && !aws_db_instance.main.multi_az
      && aws_db_instance.main.backup_retention_period == 7 && aws_db_instance.main.manage_master_user_password
    )
    error_message = "The database is encrypted, protected, backed up, private, and known by no password of ours."
  }

  assert {
    condition     = contains([for parameter in aws_db_parameter_group.main.parameter : "${parameter.name}=${parameter.value}"], "rds.force_ssl=1")
    error_message = "The database takes no connection in the clear."
  }

  # ---- Roles ----

  assert {
    condition = jsonencode({
      for daemon, policy in aws_iam_role_policy.host :
      daemon => sort(distinct(flatten([for statement in jsondecode(policy.policy).Statement : statement.Action if !startswith(statement.Sid, "BeReached")])))
      }) == jsonencode({
      importer    = ["s3:GetObject", "s3:ListBucket", "s3:PutObject", "sqs:SendMessage"]
      transformer = ["rds-db:connect", "s3:GetObject", "s3:ListBucket", "sqs:DeleteMessage", "sqs:ReceiveMessage"]
    })
    error_message = "Each role has the actions that its daemon needs, and no other."
  }

  assert {
    condition = alltrue(flatten([
      for policy in aws_iam_role_policy.host : [
        for statement in jsondecode(policy.policy).Statement :
        statement.Sid == "BeReachedBySsm" || alltrue([for resource in flatten([statement.Resource]) : !endswith(resource, ":*") && resource != "*"])
      ]
    ]))
    error_message = "Only SSM's actions, which know no resources, are for all of them."
  }

  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.host :
      [for statement in jsondecode(policy.policy).Statement : statement.Condition if statement.Action == "s3:ListBucket"][0] == { StringLike = { "s3:prefix" = ["raw/posts/*"] } }
    ])
    error_message = "The daemons list the streams that there are."
  }

  assert {
    condition = alltrue([
      for daemon, policy in aws_iam_role_policy.host :
      [for statement in jsondecode(policy.policy).Statement : statement.Resource if statement.Sid == "ReadPackageAndSettings"][0]
      == ["${aws_s3_bucket.archive.arn}/packages/*", "${aws_s3_bucket.archive.arn}/settings/${daemon}.json"]
    ])
    error_message = "Each host reads its own settings."
  }

  assert {
    condition     = [for statement in jsondecode(aws_iam_role_policy.host["transformer"].policy).Statement : statement.Resource if statement.Action == "rds-db:connect"] == ["arn:aws:rds-db:eu-central-1:123456789012:dbuser:db-ABCDEFGHIJKLMNOPQRSTUVWXYZ/transformer"]
    error_message = "The transformer connects as the runtime role, not as the administrator."
  }

  # ---- Hosts ----

  assert {
    condition = alltrue([
      for host in aws_instance.host :
      host.instance_type == "t3.micro" && host.metadata_options[0].http_tokens == "required"
      && host.root_block_device[0].encrypted && host.ami == "ami-0123456789abcdef0"
    ])
    error_message = "The hosts are small, encrypted, and give their role's keys only for a token."
  }

  assert {
    condition = alltrue([
      for daemon, host in aws_instance.host :
      strcontains(host.user_data, "${var.package_sha256}  $package") && strcontains(host.user_data, "posts-pipeline-streams watch ${daemon}\n")
      && strcontains(host.user_data, file("streams.py")) && length(host.user_data) < 16384
    ])
    error_message = "User data checks the package, brings the program that reads the settings, and is no longer than EC2 takes."
  }

  # ---- Settings ----

  assert {
    condition = jsondecode(aws_s3_object.settings["importer"].content) == {
      posts = {
        env = <<-END
          ARCHIVE_BUCKET="posts-pipeline-20250101"
          AWS_REGION="eu-central-1"
          QUEUE_URL="https://sqs.eu-central-1.amazonaws.com/123456789012/posts-pipeline-posts.fifo"
          SOURCE_URL="https://jsonplaceholder.typicode.com/posts"
        END
      }
    }
    error_message = "The importer's host is told what its unit's settings file holds."
  }

  assert {
    condition = jsondecode(aws_s3_object.settings["transformer"].content) == {
      posts = {
        env          = <<-END
          ARCHIVE_BUCKET="posts-pipeline-20250101"
          AWS_REGION="eu-central-1"
          DATABASE_AUTH="iam"
          DATABASE_SCHEMA="posts"
          QUEUE_URL="https://sqs.eu-central-1.amazonaws.com/123456789012/posts-pipeline-posts.fifo"
        END
        database-url = "${output.transformer_environment.posts.DATABASE_URL}\n"
      }
    }
    error_message = "Only the transformer is told where the database is, by the unit's credential."
  }

  # ---- Alarms ----

  assert {
    condition = alltrue([
      for alarm in concat(
        values(aws_cloudwatch_metric_alarm.host_status),
        values(aws_cloudwatch_metric_alarm.queue_age),
        [aws_cloudwatch_metric_alarm.database_storage, aws_cloudwatch_metric_alarm.database_cpu],
      ) : alarm.alarm_actions == toset([aws_sns_topic.alarms.arn])
    ]) && length(aws_cloudwatch_metric_alarm.host_status) == 2 && length(aws_cloudwatch_metric_alarm.queue_age) == 1
    error_message = "All five alarms tell the topic."
  }
}

run "what_can_be_chosen" {
  # Made from nothing, not out of the set-up above: hosts that are there keep their image.
  state_key = "chosen"

  variables {
    streams = {
      posts = {
        source_url           = "https://api.example.org:8443/posts?filter=\"a\"&price=$5"
        importer_settings    = { POLL_INTERVAL = "5m" }
        transformer_settings = { CATCH_UP_INTERVAL = "30s", DATABASE_SCHEMA = "public" }
      }
      my-comments = {
        source_url           = "https://api.example.org:9443/comments"
        importer_settings    = { RECORDS_AT = "/a b\t%n %% $HOME $$ ${"$"}{HOME} `id` $(id) * ~0 # ; ' \" \\ \\\\ \\\" \\n é\n=/data ", NEXT_PAGE = "cursor=/next" }
        transformer_settings = { RECORDS_AT = "/a b\t%n %% $HOME $$ ${"$"}{HOME} `id` $(id) * ~0 # ; ' \" \\ \\\\ \\\" \\n é\n=/data " }
      }
    }
    ami_id                       = "ami-0fedcba9876543210"
    archive_cold_after_days      = null
    noncurrent_expire_after_days = 365
    database_version             = "16"
    database_multi_az            = true
    deletion_protection          = false
    alarm_email                  = "on-call@example.org"
  }

  assert {
    condition     = output.importer_environment.posts.POLL_INTERVAL == "5m" && strcontains(jsondecode(aws_s3_object.settings["importer"].content).posts.env, "\nPOLL_INTERVAL=\"5m\"\n")
    error_message = "More settings reach the output and the host."
  }

  assert {
    condition     = output.transformer_environment.posts.CATCH_UP_INTERVAL == "30s" && strcontains(jsondecode(aws_s3_object.settings["transformer"].content).posts.env, "\nCATCH_UP_INTERVAL=\"30s\"\n")
    error_message = "More settings reach the output and the host."
  }

  assert {
    condition     = strcontains(jsondecode(aws_s3_object.settings["importer"].content).posts.env, "\nSOURCE_URL=\"https://api.example.org:8443/posts?filter=\\\"a\\\"&price=\\$5\"\n")
    error_message = "Values are quoted."
  }

  assert {
    condition     = output.transformer_environment.posts.DATABASE_SCHEMA == "public" && output.transformer_environment.my-comments.DATABASE_SCHEMA == "my_comments"
    error_message = "A schema is chosen, or named after its stream."
  }

  assert {
    condition     = aws_vpc_security_group_egress_rule.out["importer-8443"].from_port == 8443 && aws_vpc_security_group_egress_rule.out["importer-9443"].from_port == 9443
    error_message = "Each API is reached at its own port."
  }

  assert {
    condition     = alltrue([for host in aws_instance.host : !strcontains(host.user_data, "comments")])
    error_message = "User data knows nothing of streams, so another one replaces no host."
  }

  assert {
    condition     = [for alarm in aws_cloudwatch_metric_alarm.queue_age : alarm.alarm_name] == ["posts-pipeline-my-comments-nobody-answers-the-bell", "posts-pipeline-posts-nobody-answers-the-bell"]
    error_message = "Each queue has an alarm."
  }

  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.host :
      [for statement in jsondecode(policy.policy).Statement : statement.Condition if statement.Action == "s3:ListBucket"][0] == { StringLike = { "s3:prefix" = ["raw/my-comments/*", "raw/posts/*"] } }
    ])
    error_message = "The daemons list the streams that there are."
  }

  assert {
    condition     = aws_instance.host["importer"].ami == "ami-0fedcba9876543210"
    error_message = "An image of one's own is taken."
  }

  assert {
    condition     = length([for rule in aws_s3_bucket_lifecycle_configuration.archive.rule : rule if length(rule.transition) > 0]) == 0
    error_message = "Without a number of days no object moves."
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.archive.rule : rule.noncurrent_version_expiration[0].noncurrent_days if length(rule.noncurrent_version_expiration) > 0] == [365]
    error_message = "What was deleted by hand goes after the days that were chosen."
  }

  assert {
    condition     = aws_db_instance.main.multi_az && aws_db_parameter_group.main.family == "postgres16" && !aws_db_instance.main.deletion_protection
    error_message = "The database is in two zones, of the version and as unprotected as was asked for."
  }

  assert {
    condition     = aws_sns_topic_subscription.email[0].endpoint == "on-call@example.org"
    error_message = "The alarms are sent to the address."
  }
}
