# What is refused before anything is made.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  streams        = { posts = { source_url = "https://jsonplaceholder.typicode.com/posts" } }
  package_key    = "packages/posts-pipeline_1.0.0_amd64.deb"
  package_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
}

run "region" {
  command = plan

  variables {
    region = "Frankfurt"
  }

  expect_failures = [var.region]
}

run "name" {
  command = plan

  variables {
    name = "Posts_Pipeline"
  }

  expect_failures = [var.name]
}

run "no_stream" {
  command = plan

  variables {
    streams = {}
  }

  expect_failures = [var.streams]
}

run "too_many_streams" {
  command = plan

  variables {
    streams = { for number in range(21) : "stream-${number}" => { source_url = "https://api.example.org/posts" } }
  }

  expect_failures = [var.streams]
}

run "stream" {
  command = plan

  variables {
    streams = { "my posts" = { source_url = "https://api.example.org/posts" } }
  }

  expect_failures = [var.streams]
}

run "source_over_http" {
  command = plan

  variables {
    streams = { posts = { source_url = "http://api.example.org/posts" } }
  }

  expect_failures = [var.streams]
}

run "source_with_a_blank" {
  command = plan

  variables {
    streams = { posts = { source_url = "https://api.example.org/posts?a=b c" } }
  }

  expect_failures = [var.streams]
}

run "setting_that_is_no_variable" {
  command = plan

  variables {
    streams = { posts = { source_url = "https://api.example.org/posts", importer_settings = { "poll interval" = "5m" } } }
  }

  expect_failures = [var.streams]
}

run "setting_that_systemd_would_drop" {
  command = plan

  variables {
    streams = { posts = { source_url = "https://api.example.org/posts", transformer_settings = { RECORDS_AT = "/a\u0007" } } }
  }

  expect_failures = [var.streams]
}

run "setting_that_is_set_already" {
  command = plan

  variables {
    streams = { posts = { source_url = "https://api.example.org/posts", importer_settings = { STREAM = "comments" } } }
  }

  expect_failures = [var.streams]
}

run "transformer_without_a_checked_certificate" {
  command = plan

  variables {
    streams = { posts = { source_url = "https://api.example.org/posts", transformer_settings = { ALLOW_PLAINTEXT = "true" } } }
  }

  expect_failures = [var.streams]
}

run "two_streams_in_one_schema" {
  command = plan

  variables {
    streams = {
      my-posts = { source_url = "https://api.example.org/posts" }
      posts    = { source_url = "https://api.example.org/posts", transformer_settings = { DATABASE_SCHEMA = "my_posts" } }
    }
  }

  expect_failures = [var.streams]
}

run "two_daemons_at_one_port" {
  command = plan

  variables {
    streams = {
      posts    = { source_url = "https://api.example.org/posts", importer_settings = { ADMIN_ADDR = "127.0.0.1:9101" } }
      comments = { source_url = "https://api.example.org/comments", importer_settings = { ADMIN_ADDR = "0.0.0.0:9101" } }
    }
  }

  expect_failures = [var.streams]
}

run "package_outside_its_prefix" {
  command = plan

  variables {
    package_key = "raw/posts/posts-pipeline.deb"
  }

  expect_failures = [var.package_key]
}

run "checksum" {
  command = plan

  variables {
    package_sha256 = "sha256:e3b0c442"
  }

  expect_failures = [var.package_sha256]
}

run "graviton_host" {
  command = plan

  variables {
    instance_type = "t4g.micro"
  }

  expect_failures = [var.instance_type]
}

run "image" {
  command = plan

  variables {
    ami_id = "ubuntu"
  }

  expect_failures = [var.ami_id]
}

run "class_that_answers_hours_later" {
  command = plan

  variables {
    archive_cold_class = "DEEP_ARCHIVE"
  }

  expect_failures = [var.archive_cold_class]
}

run "class_of_one_zone" {
  command = plan

  variables {
    archive_cold_class = "ONEZONE_IA"
  }

  expect_failures = [var.archive_cold_class]
}

run "too_early_a_move" {
  command = plan

  variables {
    archive_cold_after_days = 7
  }

  expect_failures = [var.archive_cold_after_days]
}

run "too_early_an_end" {
  command = plan

  variables {
    noncurrent_expire_after_days = 1
  }

  expect_failures = [var.noncurrent_expire_after_days]
}

run "database_class" {
  command = plan

  variables {
    database_class = "t4g.micro"
  }

  expect_failures = [var.database_class]
}

run "database_without_merge" {
  command = plan

  variables {
    database_version = "14"
  }

  expect_failures = [var.database_version]
}

run "database_disk" {
  command = plan

  variables {
    database_storage_gib = 5
  }

  expect_failures = [var.database_storage_gib]
}

run "no_backups" {
  command = plan

  variables {
    database_backup_days = 0
  }

  expect_failures = [var.database_backup_days]
}

run "administrator_as_runtime_role" {
  command = plan

  variables {
    database_role = "posts_admin"
  }

  expect_failures = [var.database_role]
}

run "email" {
  command = plan

  variables {
    alarm_email = "on-call"
  }

  expect_failures = [var.alarm_email]
}

run "queue_age" {
  command = plan

  variables {
    queue_age_alarm_secs = 5
  }

  expect_failures = [var.queue_age_alarm_secs]
}

run "network" {
  command = plan

  variables {
    network = "10.40.0.0/28"
  }

  expect_failures = [var.network]
}
